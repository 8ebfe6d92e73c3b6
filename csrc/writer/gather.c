/* Rows of trees in another order: see writer.h. */

#include <malloc.h>

#include "tree_rows.h"

void rafs_build_map_columns(void)
{
	/* Otherwise each that is freed moves it up, to 32 MiB; pieces of 1 MiB come and go. */
	mallopt(M_MMAP_THRESHOLD, (1 << 20) + (64 << 10));
}

void rafs_build_gather(uint8_t *to, const uint8_t *from, uint32_t width, const uint32_t *rows,
		       const uint8_t *which, uint8_t me, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (which[i] == me)
			memcpy(to + (size_t)i * width, from + (size_t)rows[i] * width, width);
}

void rafs_build_shift(uint32_t *at, const uint16_t *mode, const uint8_t *which, uint8_t me,
		      uint32_t n, uint32_t targets, uint32_t refs)
{
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t kind = mode[i] >> 12;

		if (which[i] != me)
			continue;
		if (kind == LNK)
			at[i] += targets;
		else if (kind == REG && at[i] != RAFS_TREE_NONE)
			at[i] += refs;
	}
}
