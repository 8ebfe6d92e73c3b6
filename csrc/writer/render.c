/* The bytes of the metadata region (format.md 1.6 - 1.14), a window at a time: see writer.h. */

#include "tree_rows.h"

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
		const uint32_t place = t->refs[t->at[row] + i], index = t->location_index[place];
		uint8_t entry[INDEX];

		le(entry, index, 2);
		entry[2] = (uint8_t)(t->blob_index[t->location_blob[place]] + 1);
		entry[3] = (uint8_t)(index >> 16);
		le(entry + 4, t->location_flat[place] / t->block, 4);
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
	inode[48] = t->flags[row];
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
