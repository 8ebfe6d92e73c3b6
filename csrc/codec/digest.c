/* Digests by number, crc32c, and the check of one decoded chunk. */
#include <pthread.h>
#include <string.h>

#include "codec_internal.h"

#define CRC32C_POLY 0x82f63b78u	/* Castagnoli, reflected */

static pthread_once_t table_once = PTHREAD_ONCE_INIT;
static uint32_t crc_table[8][256];

int rafs_digest(uint32_t digester, const uint8_t *data, size_t len, uint8_t *out)
{
	EVP_MD *sha256;

	switch (digester) {
	case RAFS_DIGEST_BLAKE3:
		rafs_blake3(data, len, out);
		return 0;
	case RAFS_DIGEST_SHA256:
		sha256 = rafs_sha256();
		if (!sha256)
			return -ENOTSUP;
		return rafs_crypto()->digest(data, len, out, NULL, sha256, NULL) == 1 ? 0 : -ENOMEM;
	default:
		return -ENOTSUP;
	}
}

static void fill_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? CRC32C_POLY : 0);
		crc_table[0][i] = crc;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int t = 1; t < 8; t++)
			crc_table[t][i] = crc_table[t - 1][i] >> 8 ^
					  crc_table[0][crc_table[t - 1][i] & 0xff];
}

/* Eight bytes a step: table t takes a byte past t more bytes. */
static uint32_t crc32c_table(uint32_t crc, const uint8_t *p, size_t len)
{
	pthread_once(&table_once, fill_table);
	for (; len >= 8; p += 8, len -= 8) {
		uint32_t lo = le32(p) ^ crc;
		uint32_t hi = le32(p + 4);

		crc = crc_table[7][lo & 0xff] ^ crc_table[6][lo >> 8 & 0xff] ^
		      crc_table[5][lo >> 16 & 0xff] ^ crc_table[4][lo >> 24] ^
		      crc_table[3][hi & 0xff] ^ crc_table[2][hi >> 8 & 0xff] ^
		      crc_table[1][hi >> 16 & 0xff] ^ crc_table[0][hi >> 24];
	}
	for (; len; p++, len--)
		crc = crc >> 8 ^ crc_table[0][(crc ^ *p) & 0xff];
	return crc;
}

/* CRC32C_PORTABLE is set only to test what a lesser processor would run. */
#if defined(__x86_64__) && !defined(CRC32C_PORTABLE)
#define HAVE_SSE42

__attribute__((target("sse4.2")))
static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t len)
{
	uint64_t wide = crc;

	for (; len >= 8; p += 8, len -= 8)
		wide = __builtin_ia32_crc32di(wide, le64(p));
	crc = (uint32_t)wide;
	for (; len; p++, len--)
		crc = __builtin_ia32_crc32qi(crc, *p);
	return crc;
}
#endif

uint32_t rafs_crc32c(const uint8_t *data, size_t len)
{
#ifdef HAVE_SSE42
	if (__builtin_cpu_supports("sse4.2"))
		return ~crc32c_sse42(~0u, data, len);
#endif
	return ~crc32c_table(~0u, data, len);
}

int rafs_chunk_verify(const struct rafs_blob *blob, uint32_t chunk, const uint8_t *data)
{
	const struct rafs_chunk *c;
	uint8_t digest[32];
	int err;

	if (chunk >= blob->nchunks)
		return -EINVAL;
	c = &blob->chunks[chunk];
	if (c->flags & RAFS_CHUNK_HAS_DIGEST) {
		err = rafs_digest(blob->digester, data, c->usize, digest);
		if (err)
			return err;
		return memcmp(digest, c->digest, sizeof(digest)) ? -EILSEQ : 0;
	}
	if ((c->flags & RAFS_CHUNK_HAS_CRC) && rafs_crc32c(data, c->usize) != c->crc32c)
		return -EILSEQ;
	return 0;
}
