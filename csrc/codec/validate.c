/*
 * Is the whole tree of a bootstrap as rafs_v6/validate.py wants it?  That one
 * says what is wrong; this one only says that nothing is, a hundred times as
 * fast, because every first mount waits for it.  The rules are the same, in the
 * same order, and the fuzzers hold one against the other.
 *
 * One file, so that the two can be read side by side.
 *
 * Bounded like that one: one pass, and budgets for what inodes could share.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "codec_internal.h"

#define SLOT_SIZE 32
#define LAYOUT_PLAIN 0
#define LAYOUT_INLINE 2
#define LAYOUT_CHUNKS 4
#define DIRENT_SIZE 12
#define NAME_LEN_MAX 255
#define XATTR_HEAD 12
#define XATTRS_MAX 64	/* of an inode; with more of them, names are not compared here */
#define LINK_LEN_MAX 4096
#define INDEX_SIZE 8
#define FORMAT_BLKBITS 0x1f
#define FORMAT_INDEXES 0x20
#define RECORD_SIZE 80

#define DEVICES_MAX 256	/* that a chunk index can name, and one */
#define SEATS_FREE 4096

struct place {
	uint64_t key;	/* blob index << 32 | chunk index */
	uint64_t off;
	uint32_t size;
};

/* Where a chunk lies that has a seat of its own: sought without a search. */
struct seat {
	uint64_t off;
	uint32_t size;
	uint32_t is_taken;
};

struct inode {
	uint64_t nid;
	uint64_t body;	/* bytes of the bootstrap: behind the fixed part */
	uint64_t tail;	/* behind the xattrs */
	uint64_t size;
	uint32_t layout;
	uint32_t mode;
	uint32_t i_u;
};

struct pending {
	uint64_t nid;
	uint64_t parent;
};

struct walk {
	const struct rafs_bootstrap *t;
	uint8_t *seen;		/* a bit a slot */
	struct place *places;	/* sorted; or seats, of as many chunks as blobs say they have */
	struct seat *seats;
	uint64_t first_seat[DEVICES_MAX];	/* by blob */
	size_t nplaces;
	struct pending *stack;
	size_t depth, room;
	uint64_t dirents, indexes, xattr_bytes, link_bytes;	/* budgets */
	int error;		/* -ENOMEM */
};

struct name {
	const uint8_t *p;
	uint32_t len;
	uint8_t index;	/* of an xattr: the number of its prefix */
};

static inline uint16_t le16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static inline bool inside(const struct rafs_bootstrap *t, uint64_t off, uint64_t len)
{
	return off <= t->len && len <= t->len - off;
}

static bool spend(uint64_t *budget, uint64_t amount)
{
	if (amount > *budget)
		return false;
	*budget -= amount;
	return true;
}

/* -- inodes -- */

static bool size_fits(const struct inode *i)
{
	switch (i->mode & S_IFMT) {
	case S_IFREG:
		return i->layout == LAYOUT_CHUNKS;
	case S_IFDIR:
		return i->layout != LAYOUT_CHUNKS;
	case S_IFLNK:
		return i->layout != LAYOUT_CHUNKS && i->size && i->size <= LINK_LEN_MAX;
	case S_IFCHR:
	case S_IFBLK:
	case S_IFIFO:
	case S_IFSOCK:
		return i->layout != LAYOUT_CHUNKS && !i->size;
	default:
		return false;
	}
}

static bool read_inode(const struct rafs_bootstrap *t, uint64_t nid, struct inode *i)
{
	const uint8_t *p;
	uint64_t off, fixed, xattrs;
	uint32_t nlink, nsec = 0;
	uint16_t icount;
	bool extended;

	if (nid > (t->len - t->meta) / SLOT_SIZE)
		return false;
	off = t->meta + nid * SLOT_SIZE;
	if (!inside(t, off, 2))
		return false;
	p = t->data + off;
	extended = p[0] & 1;
	fixed = extended ? 64 : 32;
	i->layout = le16(p) >> 1;
	if ((i->layout != LAYOUT_PLAIN && i->layout != LAYOUT_INLINE &&
	     i->layout != LAYOUT_CHUNKS) || !inside(t, off, fixed))
		return false;
	icount = le16(p + 2);
	xattrs = icount ? XATTR_HEAD + 4 * (uint64_t)(icount - 1) : 0;
	if (!inside(t, off, fixed + xattrs))
		return false;
	i->nid = nid;
	i->body = off + fixed;
	i->tail = i->body + xattrs;
	i->mode = le16(p + 4);
	i->size = extended ? le64(p + 8) : le32(p + 8);
	i->i_u = le32(p + 16);
	nlink = extended ? le32(p + 44) : le16(p + 6);
	if (extended)
		nsec = le32(p + 40);
	return nlink && nsec < 1000000000 && size_fits(i);
}

/* The bytes that a prefix stands for; 0: there is none of that number. */
static uint32_t prefix_len(uint8_t index)
{
	static const uint8_t lengths[] = {
		[1] = sizeof("user.") - 1,
		[2] = sizeof("system.posix_acl_access") - 1,
		[3] = sizeof("system.posix_acl_default") - 1,
		[4] = sizeof("trusted.") - 1,
		[6] = sizeof("security.") - 1,
	};

	return index < sizeof(lengths) ? lengths[index] : 0;
}

/* Two entries have one name when number and rest are equal: no prefix begins with another. */
static bool is_among(const struct name *names, uint32_t n, uint8_t index, struct name rest)
{
	for (uint32_t k = 0; k < n; k++)
		if (names[k].index == index && names[k].len == rest.len &&
		    !memcmp(names[k].p, rest.p, rest.len))
			return true;
	return false;
}

static bool xattrs_fit(struct walk *w, const struct inode *i)
{
	struct name names[XATTRS_MAX];
	const uint8_t *area = w->t->data + i->body;
	const uint64_t len = i->tail - i->body;
	uint64_t at = XATTR_HEAD;
	uint32_t n = 0;

	if (!len)
		return true;
	if (!spend(&w->xattr_bytes, len) || area[4])
		return false;
	while (at < len) {
		struct name rest;
		uint32_t prefix, value_len;

		if (len - at < 4 || n == XATTRS_MAX)
			return false;
		rest = (struct name){ area + at + 4, area[at], area[at + 1] };
		prefix = prefix_len(rest.index);
		value_len = le16(area + at + 2);
		if (!prefix || rest.len + value_len > len - at - 4 ||
		    prefix + rest.len > NAME_LEN_MAX || memchr(rest.p, 0, rest.len) ||
		    is_among(names, n, rest.index, rest))
			return false;
		names[n++] = rest;
		at = (at + 4 + rest.len + value_len + 3) & ~(uint64_t)3;
	}
	return true;
}

/* -- data of regular files -- */

static int by_key(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	return x->key < y->key ? -1 : x->key > y->key;
}

/*
 * Seats for all chunks that blobs say they have.  None when that would take more memory than the
 * table is worth: what is only stated costs nothing.
 */
static void make_seats(struct walk *w)
{
	const struct rafs_bootstrap *t = w->t;
	const uint8_t *record = t->data + t->chunk_table;
	uint64_t seats = 0;

	if (t->nblobs > DEVICES_MAX)
		return;
	for (uint32_t i = 0; i < t->nblobs; i++) {
		w->first_seat[i] = seats;
		seats += t->blobs[i].is_tarfs ? 0 : t->blobs[i].chunk_count;
	}
	if (!seats || seats > 2 * w->nplaces + SEATS_FREE)
		return;
	for (size_t i = 0; i < w->nplaces; i++, record += RECORD_SIZE) {
		const uint32_t blob = le32(record + 32);

		if (blob >= t->nblobs || t->blobs[blob].is_tarfs ||
		    le32(record + 72) >= t->blobs[blob].chunk_count)
			return;
	}
	w->seats = calloc(seats, sizeof(*w->seats));
}

/* The table once more, its records at their seats; false when two differ that are of one chunk. */
static bool fill_seats(struct walk *w)
{
	const uint8_t *record = w->t->data + w->t->chunk_table;

	for (size_t i = 0; i < w->nplaces; i++, record += RECORD_SIZE) {
		struct seat *seat = &w->seats[w->first_seat[le32(record + 32)] + le32(record + 72)];
		const uint64_t off = le64(record + 56);
		const uint32_t size = le32(record + 44);

		if (seat->is_taken && (seat->off != off || seat->size != size))
			return false;
		*seat = (struct seat){ off, size, 1 };
	}
	return true;
}

/* The chunk table, sorted; false when a blob is unknown, or a chunk is there twice, differently. */
static bool read_places(struct walk *w)
{
	const struct rafs_bootstrap *t = w->t;
	const uint8_t *record = t->data + t->chunk_table;
	bool sorted = true;

	w->nplaces = t->chunk_table_len / RECORD_SIZE;
	if (!w->nplaces)
		return true;
	make_seats(w);
	if (w->seats)
		return fill_seats(w);
	w->places = calloc(w->nplaces, sizeof(*w->places));
	if (!w->places) {
		w->error = -ENOMEM;
		return false;
	}
	for (size_t i = 0; i < w->nplaces; i++, record += RECORD_SIZE) {
		const uint32_t blob = le32(record + 32);

		if (blob >= t->nblobs)
			return false;
		w->places[i] = (struct place){ (uint64_t)blob << 32 | le32(record + 72),
					       le64(record + 56), le32(record + 44) };
		sorted = sorted && (!i || w->places[i - 1].key < w->places[i].key);
	}
	if (sorted)
		return true;
	qsort(w->places, w->nplaces, sizeof(*w->places), by_key);
	for (size_t i = 1; i < w->nplaces; i++) {
		const struct place *x = &w->places[i - 1], *y = &w->places[i];

		if (x->key == y->key && (x->off != y->off || x->size != y->size))
			return false;
	}
	return true;
}

/* Is a chunk where the table has it, and as long as that says at most? */
static bool is_in_table(const struct walk *w, uint32_t blob, uint32_t index, uint64_t off,
			uint64_t size)
{
	const struct place wanted = { .key = (uint64_t)blob << 32 | index }, *found;

	if (w->seats) {
		const struct seat *seat = &w->seats[w->first_seat[blob] + index];

		return seat->is_taken && seat->off == off && size <= seat->size;
	}
	found = bsearch(&wanted, w->places, w->nplaces, sizeof(wanted), by_key);
	return found && found->off == off && size <= found->size;
}

/* Would the kernel, which obeys the format word, read what the indexes say? */
static bool format_fits(const struct rafs_bootstrap *t, const struct inode *i, uint64_t count,
			bool contiguous)
{
	const uint64_t unit = (uint64_t)t->block_size << (i->i_u & FORMAT_BLKBITS);

	if (i->i_u & ~(FORMAT_BLKBITS | FORMAT_INDEXES) || !(i->i_u & FORMAT_INDEXES))
		return false;
	if (unit == t->chunk_size || !count)
		return true;
	return unit > t->chunk_size && unit >= i->size && contiguous;
}

static bool chunks_fit(struct walk *w, const struct inode *i)
{
	const struct rafs_bootstrap *t = w->t;
	const uint64_t count = i->size / t->chunk_size + !!(i->size % t->chunk_size);
	const uint64_t start = (i->tail + INDEX_SIZE - 1) & ~(uint64_t)(INDEX_SIZE - 1);
	uint64_t left = i->size, first_off = 0;
	uint32_t first_blob = 0;
	bool contiguous = true;

	if (!spend(&w->indexes, count) || !inside(t, start, count * INDEX_SIZE))
		return false;
	for (uint64_t k = 0; k < count; k++) {
		const uint8_t *p = t->data + start + k * INDEX_SIZE;
		const uint32_t blob = p[2] - 1u, index = (uint32_t)p[3] << 16 | le16(p);
		const uint64_t off = (uint64_t)le32(p + 4) * t->block_size;
		const uint64_t size = left < t->chunk_size ? left : t->chunk_size;
		const struct rafs_bootstrap_blob *b;

		left -= size;
		if (blob >= t->nblobs)	/* 0 - 1 is larger than any */
			return false;
		b = &t->blobs[blob];
		if (index >= b->chunk_count || off > b->flat_size || size > b->flat_size - off)
			return false;
		if (!k) {
			first_blob = blob;
			first_off = off;
		}
		contiguous = contiguous && blob == first_blob &&
			     off == first_off + k * t->chunk_size;
		if (w->nplaces && !b->is_tarfs && !is_in_table(w, blob, index, off, size))
			return false;
	}
	return format_fits(t, i, count, contiguous);
}

/* -- directories and links -- */

struct flat {
	uint64_t whole_off, whole;	/* bytes: blocks of their own ... */
	uint64_t inline_off, inlined;	/* ... and what lies behind the inode */
};

static bool flat_data(const struct rafs_bootstrap *t, const struct inode *i, struct flat *f)
{
	f->inlined = i->layout == LAYOUT_INLINE ? i->size % t->block_size : 0;
	f->inline_off = i->tail;
	f->whole = i->size - f->inlined;
	f->whole_off = f->whole ? (uint64_t)i->i_u * t->block_size : 0;
	if (!inside(t, f->inline_off, f->inlined) || !inside(t, f->whole_off, f->whole))
		return false;
	return !f->inlined || f->inline_off / t->block_size ==
				      (f->inline_off + f->inlined - 1) / t->block_size;
}

static bool link_fits(struct walk *w, const struct inode *i)
{
	struct flat f;

	return spend(&w->link_bytes, i->size) && flat_data(w->t, i, &f) &&
	       !memchr(w->t->data + f.whole_off, 0, f.whole) &&
	       !memchr(w->t->data + f.inline_off, 0, f.inlined);
}

static bool is_of_type(uint8_t file_type, uint32_t mode)
{
	static const uint32_t types[] = { 0,	   S_IFREG, S_IFDIR,  S_IFCHR,
					  S_IFBLK, S_IFIFO, S_IFSOCK, S_IFLNK };

	return !file_type || (file_type < sizeof(types) / sizeof(*types) &&
			      types[file_type] == (mode & S_IFMT));
}

static bool push(struct walk *w, uint64_t nid, uint64_t parent)
{
	if (w->depth == w->room) {
		size_t room = w->room ? w->room * 2 : 256;
		struct pending *grown = realloc(w->stack, room * sizeof(*grown));

		if (!grown) {
			w->error = -ENOMEM;
			return false;
		}
		w->stack = grown;
		w->room = room;
	}
	w->stack[w->depth++] = (struct pending){ nid, parent };
	return true;
}

/* An entry that is neither "." nor "..": what it names, and what that has to be. */
static bool entry_fits(struct walk *w, uint64_t directory, uint64_t nid, uint8_t file_type)
{
	struct inode child;
	uint8_t *seen;
	bool is_new;

	if (!read_inode(w->t, nid, &child) || !is_of_type(file_type, child.mode))
		return false;
	seen = &w->seen[nid / 8];
	is_new = !(*seen & 1u << nid % 8);
	*seen |= (uint8_t)(1u << nid % 8);
	if (S_ISDIR(child.mode))
		return is_new && xattrs_fit(w, &child) && push(w, nid, directory);
	if (!is_new)
		return true;
	if (!xattrs_fit(w, &child))
		return false;
	if (S_ISREG(child.mode))
		return chunks_fit(w, &child);
	return !S_ISLNK(child.mode) || link_fits(w, &child);
}

static int compare(struct name a, struct name b)
{
	const uint32_t len = a.len < b.len ? a.len : b.len;
	const int order = memcmp(a.p, b.p, len);

	return order ? order : (a.len > b.len) - (a.len < b.len);
}

static bool is_name(struct name name)
{
	return name.len && name.len <= NAME_LEN_MAX && !memchr(name.p, 0, name.len) &&
	       !memchr(name.p, '/', name.len);
}

/* A directory that is being read: the name before, and which of "." and ".." were right. */
struct listing {
	struct pending self;
	struct name previous;
	uint32_t dots;
};

static bool block_fits(struct walk *w, struct listing *l, const uint8_t *block, uint32_t len)
{
	uint32_t first;

	if (len < DIRENT_SIZE)
		return false;
	first = le16(block + 8);
	if (first % DIRENT_SIZE || first < DIRENT_SIZE || first > len)
		return false;
	for (uint32_t at = 0; at < first; at += DIRENT_SIZE) {
		const bool last = at + DIRENT_SIZE == first;
		const uint32_t start = le16(block + at + 8);
		const uint32_t end = last ? len : le16(block + at + DIRENT_SIZE + 8);
		const uint64_t nid = le64(block + at);
		struct name name = { block + start, 0, 0 };

		if (start < first || end < start || end > len)
			return false;
		name.len = last ? (uint32_t)strnlen((const char *)name.p, end - start) : end - start;
		if (!is_name(name) || (l->previous.len && compare(name, l->previous) <= 0))
			return false;
		l->previous = name;
		if (name.len == 1 && name.p[0] == '.')
			l->dots += nid == l->self.nid;
		else if (name.len == 2 && name.p[0] == '.' && name.p[1] == '.')
			l->dots += nid == l->self.parent;
		else if (!entry_fits(w, l->self.nid, nid, block[at + 10]))
			return false;
	}
	return true;
}

static bool blocks_fit(struct walk *w, struct listing *l, uint64_t off, uint64_t len)
{
	const uint32_t bs = w->t->block_size;

	for (uint64_t at = 0; at < len; at += bs) {
		const uint64_t left = len - at;

		if (!block_fits(w, l, w->t->data + off + at, left < bs ? (uint32_t)left : bs))
			return false;
	}
	return true;
}

static bool directory_fits(struct walk *w, struct pending directory)
{
	struct listing l = { .self = directory };
	struct inode i;
	struct flat f;

	return read_inode(w->t, directory.nid, &i) &&
	       spend(&w->dirents, i.size / (DIRENT_SIZE + 1)) && flat_data(w->t, &i, &f) &&
	       blocks_fit(w, &l, f.whole_off, f.whole) &&
	       blocks_fit(w, &l, f.inline_off, f.inlined) && l.dots == 2;
}

static bool tree_fits(struct walk *w)
{
	const uint64_t root = w->t->root_nid;
	struct inode i;

	if (!read_places(w) || !read_inode(w->t, root, &i) || !S_ISDIR(i.mode) ||
	    !xattrs_fit(w, &i) || !push(w, root, root))
		return false;
	w->seen[root / 8] |= (uint8_t)(1u << root % 8);
	while (w->depth)
		if (!directory_fits(w, w->stack[--w->depth]))
			return false;
	return true;
}

int rafs_bootstrap_is_sound(const struct rafs_bootstrap *t)
{
	struct walk w = {
		.t = t,
		.dirents = t->len / DIRENT_SIZE,
		.indexes = t->len / INDEX_SIZE,
		.xattr_bytes = t->len,
		.link_bytes = t->len,
	};
	bool sound;

	if (t->meta > t->len || !inside(t, t->chunk_table, t->chunk_table_len) ||
	    !t->block_size || !t->chunk_size)
		return -EINVAL;
	w.seen = calloc(1, (t->len - t->meta) / SLOT_SIZE / 8 + 1);
	if (!w.seen)
		return -ENOMEM;
	sound = tree_fits(&w);
	free(w.seen);
	free(w.places);
	free(w.seats);
	free(w.stack);
	return w.error ? w.error : sound;
}
