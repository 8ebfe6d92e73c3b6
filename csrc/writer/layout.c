/* Where everything of the metadata region lies (format.md 1.15): see writer.h. */

#include "tree_rows.h"

static uint64_t dir_size(const struct rafs_tree *t, uint32_t dir)
{
	struct entries e = entries_of(t, dir);
	struct entry entry = { 0 };
	uint64_t blocks = 0;
	uint32_t used = 0;

	while (next_entry(&e, &entry)) {
		if (used + DIRENT + entry.len > t->block) {
			blocks++;
			used = 0;
		}
		used += DIRENT + entry.len;
	}
	return blocks * t->block + used;
}

/* -- places ---------------------------------------------------------------------------------- */

struct spot {
	uint32_t block;
	uint32_t next;		/* 0: the last */
};

/* Partly used blocks wait in lists by their free slots, the first come first. */
struct placer {
	struct rafs_tree *t;
	uint64_t end;
	uint32_t head[MAX_LISTS], tail[MAX_LISTS];
	struct spot *spots;	/* the first is nobody's */
	uint32_t n, room, unused;
	int error;
};

static void push(struct placer *p, uint64_t off)
{
	const uint32_t used = off % p->t->block, list = (p->t->block - used) / SLOT;
	uint32_t spot = p->unused;

	if (!used)
		return;
	if (spot) {
		p->unused = p->spots[spot].next;
	} else {
		if (p->n == p->room) {
			struct spot *more = realloc(p->spots, (p->room * 2ull + 64) * sizeof(*more));

			if (!more) {
				p->error = -ENOMEM;
				return;
			}
			p->room = p->room * 2 + 64;
			p->spots = more;
			p->n += !p->n;
		}
		spot = p->n++;
	}
	p->spots[spot] = (struct spot){ (uint32_t)(off / p->t->block), 0 };
	if (p->head[list])
		p->spots[p->tail[list]].next = spot;
	else
		p->head[list] = spot;
	p->tail[list] = spot;
}

static int take(struct placer *p, uint64_t size, uint64_t *off)
{
	const uint32_t block = p->t->block;

	for (uint64_t list = (size + SLOT - 1) / SLOT; list < block / SLOT; list++) {
		const uint32_t spot = p->head[list];

		if (!spot)
			continue;
		*off = (p->spots[spot].block + 1ull) * block - SLOT * list;
		p->head[list] = p->spots[spot].next;
		p->spots[spot].next = p->unused;
		p->unused = spot;
		push(p, *off + round_up(size, SLOT));
		return 1;
	}
	return 0;
}

static uint64_t take_or_append(struct placer *p, uint64_t size)
{
	uint64_t off;

	if (!take(p, size, &off)) {
		off = p->end;
		p->end += size;
	}
	return off;
}

static void next_block(struct placer *p)
{
	push(p, round_up(p->end, SLOT));
	p->end = round_up(p->end, p->t->block);
}

/* The inode of a directory or link, and its data; where the inode is. */
static uint64_t place_flat(struct placer *p, uint32_t row, uint64_t size)
{
	struct rafs_tree *t = p->t;
	const uint32_t block = t->block, tail = size % block;
	const uint64_t body = INODE + xattr_size(t, row);
	uint64_t off;

	t->dlen[row] = (uint32_t)size;
	if (tail && body + tail <= block) {
		t->dlen[row] |= INLINE;
		if (!take(p, body + tail, &off)) {
			if (block - p->end % block < body + tail)
				next_block(p);
			off = p->end;
			p->end += body + tail;
		}
		if (size != tail)
			next_block(p);
		t->data[row] = (uint32_t)(p->end / block);
		p->end += size - tail;
	} else {
		off = take_or_append(p, body);
		next_block(p);
		t->data[row] = (uint32_t)(p->end / block);
		p->end = round_up(p->end + size, block);
	}
	return off;
}

static int place(struct placer *p, uint32_t row)
{
	struct rafs_tree *t = p->t;
	uint64_t off, size;

	t->nlink[row] = 1;
	switch (kind_of(t, row)) {
	case DIR:
		t->nlink[row] = 2;
		for (uint32_t i = 0; i < t->size[row]; i++)
			t->nlink[row] += kind_of(t, t->at[row] + i) == DIR;
		size = dir_size(t, row);
		if (size >= INLINE)
			return -EFBIG;
		off = place_flat(p, row, size);
		break;
	case LNK:
		off = place_flat(p, row, t->size[row]);
		break;
	case REG:
		for (uint64_t i = 0; i < chunk_count(t, row); i++)
			if (t->blob_index[t->location_blob[t->refs[t->at[row] + i]]] == NOWHERE)
				return -ENOENT;
		size = round_up(INODE + xattr_size(t, row), INDEX);
		off = take_or_append(p, size + INDEX * chunk_count(t, row));
		break;
	default:
		off = p->end;
		p->end += INODE + xattr_size(t, row);
	}
	p->end = round_up(p->end, SLOT);
	if (p->end / SLOT > UINT32_MAX)
		return -EFBIG;
	t->nid[row] = (uint32_t)(off / SLOT);
	return p->error;
}

int64_t rafs_layout_place(struct rafs_tree *t)
{
	struct placer p = { .t = t, .end = RAFS_LAYOUT_START };
	int error = 0;

	if ((t->block != 4096 && t->block != 512) || !t->chunk_size)
		return -EINVAL;
	for (uint32_t row = 0; row < t->n && !error; row++) {
		const uint32_t first = t->link[row];

		if (first == row) {
			error = place(&p, row);
		} else {
			t->nlink[first]++;
			t->nid[row] = t->nid[first];
		}
	}
	free(p.spots);
	return error ? error : (int64_t)p.end;
}
