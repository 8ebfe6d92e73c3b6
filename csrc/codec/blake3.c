/*
 * BLAKE3, plain hash, 32 bytes of output, one call.  Chunks of 1 KiB are
 * hashed in parallel lanes of the widest vectors that the processor has, and
 * so are the parents above them.  Needs no memory but a few KiB of stack.
 */
#include <string.h>

#include "blake3_rounds.h"
#include "codec_internal.h"

/* Set lower only to test what a lesser processor would run. */
#ifndef BLAKE3_MAX_LANES
#define BLAKE3_MAX_LANES 16
#endif

#define CHUNK_LEN 1024
#define BLOCK_LEN 64
#define CV_LEN 32
/* Chunks that are taken up the tree together: enough that narrow levels do not weigh. */
#define GROUP_CHUNKS 256
#define GROUP_LEN (GROUP_CHUNKS * CHUNK_LEN)
/* One subtree for each bit in the number of groups. */
#define MAX_DEPTH 46

#define CHUNK_START 0x1u
#define CHUNK_END 0x2u
#define PARENT 0x4u
#define ROOT 0x8u

static const uint32_t iv[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
	0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static inline void store32(uint8_t *p, uint32_t v)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	v = __builtin_bswap32(v);
#endif
	memcpy(p, &v, sizeof(v));
}

#define ROT(x, n) ((x) >> (n) | (x) << (32 - (n)))

/* One block in scalar code: for what does not fill a vector's lanes. */
static void block_mix(uint32_t h[8], const uint8_t *block, uint32_t len, uint64_t counter,
		     uint32_t flags)
{
	uint32_t m[16];
	uint32_t v[16] = {
		h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7],
		iv[0], iv[1], iv[2], iv[3],
		(uint32_t)counter, (uint32_t)(counter >> 32), len, flags,
	};

	for (int i = 0; i < 16; i++)
		m[i] = le32(block + i * 4);
#define SCALAR_ROUND(...) BLAKE3_ROUND(ROT, __VA_ARGS__)
	BLAKE3_ROUNDS(SCALAR_ROUND)
#undef SCALAR_ROUND
	for (int i = 0; i < 8; i++)
		h[i] = v[i] ^ v[i + 8];
}

/* The vector kernels load words as they are and so assume the order of the disk. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAVE_LANES4

#define LANES 4
#define LANES_FN lanes4
#define LANES_TARGET
#define LANES_ROT ROT
#include "blake3_lanes.h"

#ifdef __x86_64__
#define AVX2 __attribute__((target("avx2")))
/* Has a rotate instruction, which helps narrow vectors just as well. */
#define AVX512 __attribute__((target("avx512f,avx512vl")))

#define LANES 8
#define LANES_FN lanes8
#define LANES_TARGET AVX2
#define LANES_ROT ROT
#include "blake3_lanes.h"

#define LANES 4
#define LANES_FN lanes4_avx512
#define LANES_TARGET AVX512
#define LANES_ROT ROT
#include "blake3_lanes.h"

#define LANES 8
#define LANES_FN lanes8_avx512
#define LANES_TARGET AVX512
#define LANES_ROT ROT
#include "blake3_lanes.h"

#define LANES 16
#define LANES_FN lanes16
#define LANES_TARGET AVX512
#define LANES_ROT ROT
#include "blake3_lanes.h"
#endif

#endif

typedef void (*lanes_fn)(const uint8_t *in, size_t stride, unsigned int blocks, uint64_t counter,
			 unsigned int counter_step, uint32_t flags, uint32_t flags_first,
			 uint32_t flags_last, uint8_t *out);

struct kernel {
	size_t lanes;
	lanes_fn fn;
};

#define MAX_KERNELS 3

/* Those that suit this processor, widest first. */
static size_t kernels(struct kernel k[MAX_KERNELS])
{
	size_t n = 0;

#ifdef __x86_64__
	if (BLAKE3_MAX_LANES >= 16 && __builtin_cpu_supports("avx512vl")) {
		k[n++] = (struct kernel){ 16, lanes16 };
		k[n++] = (struct kernel){ 8, lanes8_avx512 };
		k[n++] = (struct kernel){ 4, lanes4_avx512 };
		return n;
	}
	if (BLAKE3_MAX_LANES >= 8 && __builtin_cpu_supports("avx2"))
		k[n++] = (struct kernel){ 8, lanes8 };
#endif
#ifdef HAVE_LANES4
	if (BLAKE3_MAX_LANES >= 4)
		k[n++] = (struct kernel){ 4, lanes4 };
#endif
	return n;
}

static void store_cv(uint8_t *out, const uint32_t h[8])
{
	for (int i = 0; i < 8; i++)
		store32(out + i * 4, h[i]);
}

/* A chunk of 0 to 1024 bytes. */
static void chunk_cv(const uint8_t *in, size_t len, uint64_t counter, uint32_t root, uint8_t *out)
{
	uint32_t h[8], flags = CHUNK_START;
	uint8_t last[BLOCK_LEN] = { 0 };

	memcpy(h, iv, sizeof(h));
	for (; len > BLOCK_LEN; in += BLOCK_LEN, len -= BLOCK_LEN) {
		block_mix(h, in, BLOCK_LEN, counter, flags);
		flags = 0;
	}
	if (len)
		memcpy(last, in, len);
	block_mix(h, last, (uint32_t)len, counter, flags | CHUNK_END | root);
	store_cv(out, h);
}

/* Of the two chaining values at pair; out may be pair. */
static void parent_cv(const uint8_t *pair, uint32_t root, uint8_t *out)
{
	uint32_t h[8];

	memcpy(h, iv, sizeof(h));
	block_mix(h, pair, BLOCK_LEN, 0, PARENT | root);
	store_cv(out, h);
}

/* Chaining values of all chunks of in; returns how many. */
static size_t chunk_level(const uint8_t *in, size_t len, uint64_t counter, uint8_t *cvs)
{
	struct kernel k[MAX_KERNELS];
	const size_t nkernels = kernels(k);
	const size_t whole = len / CHUNK_LEN;
	size_t done = 0;

	for (size_t i = 0; i < nkernels; i++)
		for (; whole - done >= k[i].lanes; done += k[i].lanes)
			k[i].fn(in + done * CHUNK_LEN, CHUNK_LEN, CHUNK_LEN / BLOCK_LEN,
				counter + done, 1, 0, CHUNK_START, CHUNK_END, cvs + done * CV_LEN);
	for (; done < whole; done++)
		chunk_cv(in + done * CHUNK_LEN, CHUNK_LEN, counter + done, 0, cvs + done * CV_LEN);
	if (len % CHUNK_LEN) {
		chunk_cv(in + done * CHUNK_LEN, len % CHUNK_LEN, counter + done, 0,
			 cvs + done * CV_LEN);
		done++;
	}
	return done;
}

/* One level up, in place: pairs become parents, an odd one moves up as it is. */
static size_t parent_level(uint8_t *cvs, size_t n)
{
	struct kernel k[MAX_KERNELS];
	const size_t nkernels = kernels(k);
	const size_t parents = n / 2;
	size_t done = 0;

	for (size_t i = 0; i < nkernels; i++)
		for (; parents - done >= k[i].lanes; done += k[i].lanes)
			k[i].fn(cvs + done * BLOCK_LEN, BLOCK_LEN, 1, 0, 0, PARENT, 0, 0,
				cvs + done * CV_LEN);
	for (; done < parents; done++)
		parent_cv(cvs + done * BLOCK_LEN, 0, cvs + done * CV_LEN);
	if (n % 2)
		memmove(cvs + done * CV_LEN, cvs + (n - 1) * CV_LEN, CV_LEN);
	return (n + 1) / 2;
}

void rafs_blake3(const uint8_t *data, size_t len, uint8_t out[32])
{
	uint8_t cvs[GROUP_CHUNKS * CV_LEN];
	/* Roots of complete subtrees, largest first; one slot more to put a pair together. */
	uint8_t stack[(MAX_DEPTH + 1) * CV_LEN];
	size_t depth = 0, n;
	uint64_t groups = 0;

	if (len <= CHUNK_LEN) {
		chunk_cv(data, len, 0, ROOT, out);
		return;
	}
	/* More input follows each of these groups, so none of their parents is the root. */
	for (; len > GROUP_LEN; data += GROUP_LEN, len -= GROUP_LEN) {
		n = chunk_level(data, GROUP_LEN, groups * GROUP_CHUNKS, cvs);
		while (n > 1)
			n = parent_level(cvs, n);
		memcpy(stack + depth++ * CV_LEN, cvs, CV_LEN);
		groups++;
		for (uint64_t full = groups; !(full & 1); full >>= 1) {
			depth--;
			parent_cv(stack + (depth - 1) * CV_LEN, 0, stack + (depth - 1) * CV_LEN);
		}
	}
	n = chunk_level(data, len, groups * GROUP_CHUNKS, cvs);
	while (n > 2)
		n = parent_level(cvs, n);
	if (!depth) {
		parent_cv(cvs, ROOT, out);
		return;
	}
	if (n == 2)
		parent_cv(cvs, 0, cvs);
	memcpy(stack + depth * CV_LEN, cvs, CV_LEN);
	for (; depth > 1; depth--)
		parent_cv(stack + (depth - 1) * CV_LEN, 0, stack + (depth - 1) * CV_LEN);
	parent_cv(stack, ROOT, out);
}
