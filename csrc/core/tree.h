/*
 * The tree of a bootstrap, for those who serve it themselves: a reader of EROFS as RAFS v6 uses it.
 *
 * The bootstrap was validated (rafs_v6/validate.py) before it comes here.  Nothing depends on that
 * but the answers: every access is inside its memory, and every loop ends.
 */
#ifndef NF_TREE_H
#define NF_TREE_H

#include <stdbool.h>

#include "base.h"

#define NF_NAME_MAX 255u
#define NF_LINK_MAX 4096u

struct nf_tree {
	const uint8_t *data;
	size_t len;
	uint64_t meta;		/* bytes: where nid 0 is */
	uint64_t root;
	uint64_t build_time;	/* of inodes that have none */
	uint64_t blocks;
	uint64_t inodes;
	uint32_t build_nsec;
	uint32_t block_size;
};

struct nf_node {
	uint64_t nid;
	uint64_t size;
	uint64_t mtime;
	uint64_t body;		/* bytes of the bootstrap: behind the fixed part */
	uint64_t tail;		/* behind the xattrs */
	uint32_t nsec;
	uint32_t mode;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint32_t layout;
	uint32_t i_u;		/* a device's number; where data are; how chunks are */
};

struct nf_entry {
	uint64_t nid;
	const uint8_t *name;
	uint32_t len;
	uint32_t type;		/* DT_REG, ... */
};

struct nf_xattr {
	const char *prefix;
	const uint8_t *name;	/* behind the prefix */
	uint32_t name_len;
	const uint8_t *value;
	uint32_t value_len;
};

/* `data` outlives the tree.  -EINVAL: it has no root directory. */
int nf_tree_open(struct nf_tree *t, const uint8_t *data, size_t len);
/* False: there is no such inode. */
bool nf_tree_node(const struct nf_tree *t, uint64_t nid, struct nf_node *out);
/* -ENOENT, -EIO. */
int nf_tree_lookup(const struct nf_tree *t, const struct nf_node *directory, const uint8_t *name,
		   uint32_t len, uint64_t *nid);
/* The entry at *pos, 0 at first, which then is that of the next; "." and ".." included, in the
 * order of the bootstrap, as the kernel's EROFS has them.  1; 0: there is none; -EIO. */
int nf_tree_entry(const struct nf_tree *t, const struct nf_node *directory, uint64_t *pos,
		  struct nf_entry *out);
/* The target, without a NUL; returns its length, or -EINVAL, -EIO. */
int nf_tree_link(const struct nf_tree *t, const struct nf_node *node, uint8_t out[NF_LINK_MAX]);
/* The next xattr from *at, 0 at first.  1; 0: there is none; -EIO. */
int nf_tree_xattr(const struct nf_tree *t, const struct nf_node *node, uint64_t *at,
		  struct nf_xattr *out);
/* The longest run of one device from byte off of a regular file on, of at most *len bytes: device
 * *device (from 0), flat byte *at.  *len is 0 at the end of the file.  -EIO. */
int nf_tree_data(const struct nf_tree *t, const struct nf_node *node, uint64_t off, uint64_t *len,
		 uint32_t *device, uint64_t *at);

#endif
