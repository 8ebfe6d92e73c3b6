/* The metadata region of a bootstrap (format.md 1.6 - 1.15): see build.h. */

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

static uint32_t kind_of(const struct rafs_tree *t, uint32_t row)
{
	return t->mode[row] >> 12;
}

static uint64_t round_up(uint64_t value, uint64_t to)
{
	return (value + to - 1) / to * to;
}

static uint32_t xattr_size(const struct rafs_tree *t, uint32_t row)
{
	return t->xattr_off[t->xattr[row] + 1] - t->xattr_off[t->xattr[row]];
}

static uint64_t chunk_count(const struct rafs_tree *t, uint32_t row)
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

static struct entries entries_of(const struct rafs_tree *t, uint32_t dir)
{
	const uint32_t n = (uint32_t)t->size[dir], first = n ? t->at[dir] : 0;

	return (struct entries){ .t = t, .dir = dir, .next = first, .end = first + n };
}

static int next_entry(struct entries *e, struct entry *out)
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
			if (t->blob_index[t->place_blob[t->refs[t->at[row] + i]]] == NOWHERE)
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

/* -- bytes ----------------------------------------------------------------------------------- */

struct window {
	uint8_t *out;
	uint64_t from, end;	/* of the region */
};

static int meets(const struct window *w, uint64_t at, uint64_t len)
{
	return at < w->end && at + len > w->from;
}

/* What of data lies in the window. */
static void put(const struct window *w, uint64_t at, const uint8_t *data, uint64_t len)
{
	if (!meets(w, at, len))
		return;
	if (at < w->from) {
		data += w->from - at;
		len -= w->from - at;
		at = w->from;
	}
	if (len > w->end - at)
		len = w->end - at;
	memcpy(w->out + (at - w->from), data, len);
}

static void le(uint8_t *to, uint64_t value, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> 8 * i);
}

/* Data of a directory or link: whole blocks at `data`, the rest at `tail` when it is inline. */
struct flat {
	const struct window *w;
	uint64_t data, tail;
	uint64_t whole;		/* bytes in whole blocks, or all */
};

static void put_flat(const struct flat *f, uint64_t at, const uint8_t *data, uint64_t len)
{
	/* Nothing that is put at once crosses from one to the other but a link's target. */
	if (at < f->whole) {
		const uint64_t n = len < f->whole - at ? len : f->whole - at;

		put(f->w, f->data + at, data, n);
		at += n;
		data += n;
		len -= n;
	}
	if (len)
		put(f->w, f->tail + (at - f->whole), data, len);
}

static uint8_t dirent_type(uint32_t kind)
{
	static const uint8_t types[16] = {
		[REG] = 1, [DIR] = 2, [CHR] = 3, [BLK] = 4, [FIFO] = 5, [SOCK] = 6, [LNK] = 7,
	};

	return types[kind];
}

/* The names of a block lie behind all its dirents, so the block is gone through twice. */
static void put_dir(const struct rafs_tree *t, uint32_t dir, const struct flat *f)
{
	struct entries at = entries_of(t, dir);
	struct entry entry = { 0 };
	uint64_t base = 0;
	int more = 1;

	while (more) {
		struct entries ahead = at;
		uint32_t used = 0, n = 0, name_off;

		while ((more = next_entry(&ahead, &entry)) &&
		       used + DIRENT + entry.len <= t->block) {
			used += DIRENT + entry.len;
			n++;
		}
		name_off = DIRENT * n;
		for (uint32_t i = 0; i < n; i++) {
			uint8_t head[DIRENT] = { 0 };

			next_entry(&at, &entry);
			le(head, t->nid[entry.row], 8);
			le(head + 8, name_off, 2);
			head[10] = dirent_type(kind_of(t, entry.row));
			put_flat(f, base + DIRENT * i, head, DIRENT);
			put_flat(f, base + name_off, entry.name, entry.len);
			name_off += entry.len;
		}
		base += t->block;
	}
}

static void put_indexes(const struct rafs_tree *t, uint32_t row, const struct window *w, uint64_t at)
{
	const uint64_t n = chunk_count(t, row);

	for (uint64_t i = 0; i < n; i++, at += INDEX) {
		const uint32_t place = t->refs[t->at[row] + i], index = t->place_index[place];
		uint8_t entry[INDEX];

		le(entry, index, 2);
		entry[2] = (uint8_t)(t->blob_index[t->place_blob[place]] + 1);
		entry[3] = (uint8_t)(index >> 16);
		le(entry + 4, t->place_flat[place] / t->block, 4);
		put(w, at, entry, INDEX);
	}
}

static void put_inode(const struct rafs_tree *t, uint32_t row, uint64_t meta_addr,
		      const struct window *w)
{
	const uint64_t off = (uint64_t)t->nid[row] * SLOT, tail = off + INODE + xattr_size(t, row);
	const uint32_t kind = kind_of(t, row), xattrs = xattr_size(t, row);
	uint32_t i_u = 0, layout = PLAIN;
	uint64_t size = t->size[row], behind = 0;
	struct flat flat = { .w = w, .tail = tail };
	uint8_t inode[INODE] = { 0 };

	if (kind == DIR || kind == LNK) {
		size = t->dlen[row] & ~INLINE;
		flat.data = (uint64_t)t->data[row] * t->block;
		flat.whole = size;
		if (t->dlen[row] & INLINE) {
			layout = TAIL_INLINE;
			behind = size % t->block;
			flat.whole -= behind;
		}
		i_u = (uint32_t)(meta_addr / t->block + t->data[row]);
	} else if (kind == REG) {
		layout = CHUNK_BASED;
		behind = INDEX * (chunk_count(t, row) + 1);
		/* Never upstream's wider format for contiguous chunks: this is always right. */
		i_u = 0x20 | (uint32_t)(__builtin_ctz(t->chunk_size) - __builtin_ctz(t->block));
	} else if (kind == CHR || kind == BLK) {
		i_u = t->at[row];
	}
	if (!meets(w, off, tail - off + behind) && !meets(w, flat.data, flat.whole))
		return;
	le(inode, 1 | layout << 1, 2);
	le(inode + 2, xattrs ? 1 + (xattrs - 12) / 4 : 0, 2);
	le(inode + 4, t->mode[row], 2);
	le(inode + 8, size, 8);
	le(inode + 16, i_u, 4);
	le(inode + 20, row + 1, 4);
	le(inode + 24, t->uid[row], 4);
	le(inode + 28, t->gid[row], 4);
	le(inode + 32, (uint64_t)t->mtime[row], 8);
	le(inode + 40, t->mtime_nsec[row], 4);
	le(inode + 44, t->nlink[row], 4);
	put(w, off, inode, INODE);
	put(w, off + INODE, t->xattrs + t->xattr_off[t->xattr[row]], xattrs);
	if (kind == DIR)
		put_dir(t, row, &flat);
	else if (kind == LNK)
		put_flat(&flat, 0, t->targets + t->at[row], size);
	else if (kind == REG)
		put_indexes(t, row, w, round_up(tail, INDEX));
}

void rafs_layout_render(const struct rafs_tree *t, uint64_t meta_addr, uint64_t from,
			uint8_t *out, size_t len)
{
	const struct window w = { .out = out, .from = from, .end = from + len };

	memset(out, 0, len);
	for (uint32_t row = 0; row < t->n; row++)
		if (t->link[row] == row)
			put_inode(t, row, meta_addr, &w);
}
