/* Positions, sizes and counts are those of docs/format.md. */
#include "tree.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#define SUPER 1024u
#define SUPER_SIZE 128u
#define SUPER_MAGIC 0xE0F5E1E2u
#define DEVICE_SIZE 128u
#define DEVICE_BLOCKS 64u
#define SLOT_SIZE 32u
#define LAYOUT_INLINE 2u
#define LAYOUT_CHUNKS 4u
#define DIRENT_SIZE 12u
#define XATTR_HEAD 12u
#define INDEX_SIZE 8u
#define FORMAT_BLKBITS 0x1fu

static inline uint16_t le16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t le32(const uint8_t *p)
{
	return le16(p) | (uint32_t)le16(p + 2) << 16;
}

static inline uint64_t le64(const uint8_t *p)
{
	return le32(p) | (uint64_t)le32(p + 4) << 32;
}

static inline bool inside(const struct nf_tree *t, uint64_t off, uint64_t len)
{
	return off <= t->len && len <= t->len - off;
}

/* Of the bootstrap and its devices together, as the kernel counts them. */
static uint64_t count_blocks(const struct nf_tree *t, const uint8_t *super)
{
	uint64_t blocks = le32(super + 36), at = (uint64_t)le16(super + 88) * DEVICE_SIZE;
	uint32_t devices = le16(super + 86);

	for (; devices-- && inside(t, at, DEVICE_SIZE); at += DEVICE_SIZE)
		blocks += le32(t->data + at + DEVICE_BLOCKS);
	return blocks;
}

int nf_tree_open(struct nf_tree *t, const uint8_t *data, size_t len)
{
	const uint8_t *super = data + SUPER;
	struct nf_node root;

	memset(t, 0, sizeof(*t));
	if (len < SUPER + SUPER_SIZE || le32(super) != SUPER_MAGIC || super[12] < 9 || super[12] > 16)
		return -EINVAL;
	t->data = data;
	t->len = len;
	t->block_size = 1u << super[12];
	t->root = le16(super + 14);
	t->inodes = le64(super + 16);
	t->build_time = le64(super + 24);
	t->build_nsec = le32(super + 32);
	t->blocks = count_blocks(t, super);
	t->meta = (uint64_t)le32(super + 40) * t->block_size;
	return nf_tree_node(t, t->root, &root) && S_ISDIR(root.mode) ? 0 : -EINVAL;
}

bool nf_tree_node(const struct nf_tree *t, uint64_t nid, struct nf_node *out)
{
	uint64_t off, fixed, xattrs;
	const uint8_t *p;
	bool extended;

	if (t->meta > t->len || nid > (t->len - t->meta) / SLOT_SIZE)
		return false;
	off = t->meta + nid * SLOT_SIZE;
	if (!inside(t, off, SLOT_SIZE))
		return false;
	p = t->data + off;
	extended = p[0] & 1;
	fixed = extended ? 64 : 32;
	xattrs = le16(p + 2) ? XATTR_HEAD + 4 * (uint64_t)(le16(p + 2) - 1) : 0;
	if (!inside(t, off, fixed + xattrs))
		return false;
	*out = (struct nf_node){
		.nid = nid,
		.size = extended ? le64(p + 8) : le32(p + 8),
		.mtime = extended ? le64(p + 32) : t->build_time,
		.body = off + fixed,
		.tail = off + fixed + xattrs,
		.nsec = extended ? le32(p + 40) : t->build_nsec,
		.mode = le16(p + 4),
		.nlink = extended ? le32(p + 44) : le16(p + 6),
		.uid = extended ? le32(p + 24) : le16(p + 24),
		.gid = extended ? le32(p + 28) : le16(p + 26),
		.layout = le16(p) >> 1,
		.i_u = le32(p + 16),
	};
	return true;
}

/* -- data in the bootstrap: directories and links ---------------------------------------------- */

/* Bytes [off, off + len) of a node, which lie in one block. NULL: they are not there. */
static const uint8_t *flat(const struct nf_tree *t, const struct nf_node *n, uint64_t off,
			   uint64_t len)
{
	uint64_t inlined = n->layout == LAYOUT_INLINE ? n->size % t->block_size : 0;
	uint64_t whole = n->size - inlined, at;

	if (n->layout == LAYOUT_CHUNKS || off > n->size || len > n->size - off)
		return NULL;
	at = off < whole ? (uint64_t)n->i_u * t->block_size + off : n->tail + (off - whole);
	return inside(t, at, len) ? t->data + at : NULL;
}

int nf_tree_link(const struct nf_tree *t, const struct nf_node *n, uint8_t out[NF_LINK_MAX])
{
	uint64_t off, len;
	const uint8_t *p;

	if (!S_ISLNK(n->mode))
		return -EINVAL;
	if (n->size > NF_LINK_MAX)
		return -EIO;
	for (off = 0; off < n->size; off += len) {
		len = t->block_size - off % t->block_size;
		if (len > n->size - off)
			len = n->size - off;
		p = flat(t, n, off, len);
		if (!p)
			return -EIO;
		memcpy(out + off, p, len);
	}
	return (int)n->size;
}

/* A block of a directory, and how many entries it has; 0: it has none, or is bad. */
struct block {
	const uint8_t *data;
	uint32_t len;
	uint32_t count;
};

static bool block_at(const struct nf_tree *t, const struct nf_node *n, uint64_t number,
		     struct block *out)
{
	uint64_t off = number * t->block_size;
	uint32_t first;

	if (off >= n->size)
		return false;
	out->len = n->size - off < t->block_size ? (uint32_t)(n->size - off) : t->block_size;
	out->data = flat(t, n, off, out->len);
	if (!out->data || out->len < DIRENT_SIZE)
		return false;
	first = le16(out->data + 8);
	out->count = first / DIRENT_SIZE;
	return first >= DIRENT_SIZE && first <= out->len && first % DIRENT_SIZE == 0;
}

static bool entry_of(const struct block *b, uint32_t i, struct nf_entry *out)
{
	static const uint8_t types[] = { DT_UNKNOWN, DT_REG, DT_DIR, DT_CHR,
					 DT_BLK, DT_FIFO, DT_SOCK, DT_LNK };
	const uint8_t *p = b->data + i * DIRENT_SIZE;
	uint32_t start = le16(p + 8), end = b->len;
	bool last = i + 1 == b->count;

	if (!last)
		end = le16(p + DIRENT_SIZE + 8);
	if (start > end || end > b->len)
		return false;
	out->nid = le64(p);
	out->name = b->data + start;
	out->len = last ? (uint32_t)strnlen((const char *)out->name, end - start) : end - start;
	out->type = p[10] < sizeof(types) ? types[p[10]] : DT_UNKNOWN;
	return out->len && out->len <= NF_NAME_MAX;
}

static int compare(const struct nf_entry *e, const uint8_t *name, uint32_t len)
{
	int order = memcmp(e->name, name, e->len < len ? e->len : len);

	return order ? order : (e->len > len) - (e->len < len);
}

int nf_tree_lookup(const struct nf_tree *t, const struct nf_node *n, const uint8_t *name,
		   uint32_t len, uint64_t *nid)
{
	uint64_t low = 0, high = n->size / t->block_size + !!(n->size % t->block_size);
	struct nf_entry e;
	struct block b;
	uint32_t from, to;

	/* the last block whose first name is not above */
	while (high - low > 1) {
		uint64_t middle = low + (high - low) / 2;

		if (!block_at(t, n, middle, &b) || !entry_of(&b, 0, &e))
			return -EIO;
		if (compare(&e, name, len) <= 0)
			low = middle;
		else
			high = middle;
	}
	if (!high || !block_at(t, n, low, &b))
		return high ? -EIO : -ENOENT;
	for (from = 0, to = b.count; from < to;) {
		uint32_t middle = from + (to - from) / 2;
		int order;

		if (!entry_of(&b, middle, &e))
			return -EIO;
		order = compare(&e, name, len);
		if (!order) {
			*nid = e.nid;
			return 0;
		}
		if (order < 0)
			from = middle + 1;
		else
			to = middle;
	}
	return -ENOENT;
}

/* A position is that of the entry's record in the directory. */
int nf_tree_entry(const struct nf_tree *t, const struct nf_node *n, uint64_t *pos,
		  struct nf_entry *out)
{
	uint64_t number = *pos / t->block_size;
	uint32_t i = (uint32_t)(*pos % t->block_size) / DIRENT_SIZE;
	struct block b;

	if (number * t->block_size >= n->size)
		return 0;
	if (!block_at(t, n, number, &b))
		return -EIO;
	if (i >= b.count) {	/* it was none of ours: begin with the next block */
		*pos = (number + 1) * t->block_size;
		return nf_tree_entry(t, n, pos, out);
	}
	if (!entry_of(&b, i, out))
		return -EIO;
	*pos = i + 1 < b.count ? number * t->block_size + (i + 1) * DIRENT_SIZE :
				 (number + 1) * t->block_size;
	return 1;
}

/* -- xattrs ------------------------------------------------------------------------------------ */

int nf_tree_xattr(const struct nf_tree *t, const struct nf_node *n, uint64_t *at,
		  struct nf_xattr *out)
{
	static const char *const prefixes[] = {
		[1] = "user.", [2] = "system.posix_acl_access", [3] = "system.posix_acl_default",
		[4] = "trusted.", [6] = "security.",
	};
	uint64_t len = n->tail - n->body;
	const uint8_t *p;

	if (*at < XATTR_HEAD)
		*at = XATTR_HEAD;
	if (*at >= len)
		return 0;
	p = t->data + n->body + *at;
	if (len - *at < 4)
		return -EIO;
	out->name_len = p[0];
	out->value_len = le16(p + 2);
	out->prefix = p[1] < sizeof(prefixes) / sizeof(*prefixes) ? prefixes[p[1]] : NULL;
	if (!out->prefix || out->name_len + out->value_len > len - *at - 4)
		return -EIO;
	out->name = p + 4;
	out->value = p + 4 + out->name_len;
	*at = (*at + 4 + out->name_len + out->value_len + 3) & ~(uint64_t)3;
	return 1;
}

/* -- data of regular files --------------------------------------------------------------------- */

/* Of chunk `number`: its device from 0, and where it begins there. */
static bool chunk_at(const struct nf_tree *t, const struct nf_node *n, uint64_t number,
		     uint32_t *device, uint64_t *at)
{
	uint64_t start = (n->tail + INDEX_SIZE - 1) & ~(uint64_t)(INDEX_SIZE - 1);
	const uint8_t *p;

	if (number > t->len / INDEX_SIZE || !inside(t, start + number * INDEX_SIZE, INDEX_SIZE))
		return false;
	p = t->data + start + number * INDEX_SIZE;
	*device = p[2] - 1u;
	*at = (uint64_t)le32(p + 4) * t->block_size;
	return p[2] != 0;
}

int nf_tree_data(const struct nf_tree *t, const struct nf_node *n, uint64_t off, uint64_t *len,
		 uint32_t *device, uint64_t *at)
{
	uint64_t chunk = (uint64_t)t->block_size << (n->i_u & FORMAT_BLKBITS), number, run, begin;
	uint32_t other;

	if (!S_ISREG(n->mode) || n->layout != LAYOUT_CHUNKS)
		return -EIO;
	if (off >= n->size || !*len) {
		*len = 0;
		return 0;
	}
	if (*len > n->size - off)
		*len = n->size - off;
	number = off / chunk;
	if (!chunk_at(t, n, number, device, &begin))
		return -EIO;
	*at = begin + off % chunk;
	for (run = chunk - off % chunk; run < *len; run += chunk) {
		uint64_t next;

		if (!chunk_at(t, n, ++number, &other, &next))
			return -EIO;
		if (other != *device || next != *at + run)
			break;
	}
	if (run < *len)
		*len = run;
	return 0;
}
