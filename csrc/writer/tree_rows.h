/* Rows of a tree, as both halves of the metadata region read them: layout.c, render.c. */
#ifndef RAFS_WRITER_TREE_ROWS_H
#define RAFS_WRITER_TREE_ROWS_H

#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "rafs.h"
#include "writer.h"

#define SLOT 32			/* bytes that a nid counts */
#define INODE 64		/* every inode is an extended one */
#define DIRENT 12
#define INDEX 8			/* bytes of a chunk index */
#define INLINE 0x80000000u	/* in rafs_tree.dlen: the tail lies behind the inode */
#define MAX_LISTS (4096 / SLOT)
#define NOWHERE UINT16_MAX

enum { PLAIN = 0, TAIL_INLINE = 2, CHUNK_BASED = 4 };
enum { FIFO = 1, CHR = 2, DIR = 4, BLK = 6, REG = 8, LNK = 10, SOCK = 12 };

static inline uint32_t kind_of(const struct rafs_tree *t, uint32_t row)
{
	return t->mode[row] >> 12;
}

static inline uint64_t round_up(uint64_t value, uint64_t to)
{
	return (value + to - 1) / to * to;
}

static inline uint32_t xattr_size(const struct rafs_tree *t, uint32_t row)
{
	return t->xattr_off[t->xattr[row] + 1] - t->xattr_off[t->xattr[row]];
}

static inline uint64_t chunk_count(const struct rafs_tree *t, uint32_t row)
{
	if (t->at[row] == RAFS_TREE_NONE)
		return 0;
	return (t->size[row] + t->chunk_size - 1) / t->chunk_size;
}

/* -- entries of a directory, with "." and "..", in the order of their bytes ------------------- */

struct entry {
	const uint8_t *name;
	uint32_t len;
	uint32_t row;
};

struct entries {
	const struct rafs_tree *t;
	uint32_t dir;
	uint32_t next, end;	/* rows of children */
	uint32_t dots;		/* how many of the two were given out */
};

static inline struct entries entries_of(const struct rafs_tree *t, uint32_t dir)
{
	const uint32_t n = (uint32_t)t->size[dir], first = n ? t->at[dir] : 0;

	return (struct entries){ .t = t, .dir = dir, .next = first, .end = first + n };
}

static inline int next_entry(struct entries *e, struct entry *out)
{
	static const uint8_t dots[] = "..";
	const struct rafs_tree *t = e->t;
	const uint32_t row = e->next, dot_len = e->dots + 1;

	if (row < e->end) {
		out->name = t->names + t->name[row];
		out->len = t->name[row + 1] - t->name[row];
		out->row = row;
	}
	if (e->dots < 2) {
		const uint32_t common = out->len < dot_len ? out->len : dot_len;
		int order = -1;

		if (row < e->end) {
			order = memcmp(dots, out->name, common);
			if (!order)
				order = dot_len < out->len ? -1 : 1;
		}
		if (order < 0) {
			*out = (struct entry){ dots, dot_len, e->dots ? t->parent[e->dir] : e->dir };
			e->dots++;
			return 1;
		}
	}
	if (row >= e->end)
		return 0;
	e->next++;
	return 1;
}

#endif
