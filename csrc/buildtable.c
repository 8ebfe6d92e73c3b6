/* The chunk table of a bootstrap: see build.h. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "codec_internal.h"
#include "build.h"

#define RECORD 80
#define DIGEST 32
#define BLOB_INDEX 32
#define CHUNK_INDEX 72

static int by_word(uint32_t a, uint32_t b)
{
	return a < b ? -1 : a > b;
}

static int by_key(const uint8_t *a, const uint8_t *b)
{
	int order = memcmp(a, b, DIGEST);

	return order ? order : by_word(le32(a + BLOB_INDEX), le32(b + BLOB_INDEX));
}

static int by_key_last_first(const void *a, const void *b)
{
	const uint8_t *x = a, *y = b;
	int order = by_key(x, y);

	return order ? order : by_word(le32(y + CHUNK_INDEX), le32(x + CHUNK_INDEX));
}

uint32_t rafs_build_sort_table(uint8_t *table, uint32_t n)
{
	uint32_t kept = 0, i;

	qsort(table, n, RECORD, by_key_last_first);
	for (i = 0; i < n; i++) {
		uint8_t *to = table + (size_t)kept * RECORD;
		const uint8_t *from = table + (size_t)i * RECORD;

		if (kept && !by_key(to - RECORD, from))
			continue;
		if (to != from)
			memcpy(to, from, RECORD);
		kept++;
	}
	memset(table + (size_t)kept * RECORD, 0, (size_t)(n - kept) * RECORD);
	return kept;
}
