/* What the fuzz targets share: input taken apart field by field, and exact copies. */
#ifndef NYDUS_FUZZ_H
#define NYDUS_FUZZ_H

#include <stdlib.h>
#include <string.h>

#include "codec_internal.h"

/* What a decoder must never break, whatever it reads. */
#define MUST(cond) do { if (!(cond)) __builtin_trap(); } while (0)

struct input {
	const uint8_t *p;
	size_t len;
};

/* The next n bytes as a number, zeros when they run out. */
static inline uint64_t take(struct input *in, size_t n)
{
	uint64_t v = 0;

	for (size_t i = 0; i < n && in->len; i++, in->p++, in->len--)
		v |= (uint64_t)*in->p << (8 * i);
	return v;
}

/* The next n bytes, or all that are left, in memory of exactly that size: ASAN sees any step beyond. */
static inline uint8_t *take_copy(struct input *in, size_t n, size_t *got)
{
	uint8_t *copy;

	*got = n < in->len ? n : in->len;
	copy = malloc(*got);
	MUST(copy || !*got);
	if (*got)
		memcpy(copy, in->p, *got);
	in->p += *got;
	in->len -= *got;
	return copy;
}

/* One decoder for all runs, as in the daemon: what a bad input leaves behind must not matter. */
static inline struct rafs_decoder *decoder(void)
{
	static struct rafs_decoder *d;

	if (!d)
		d = rafs_decoder_new();
	MUST(d);
	return d;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
