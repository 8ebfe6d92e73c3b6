/*
 * The tree of a bootstrap as a FUSE file system, for kernels without EROFS: what the kernel's EROFS
 * shows of it, to the inode number and the order of a directory.
 *
 * Node and inode are numbered by the image, so that nothing is to be remembered of a LOOKUP, and a
 * FORGET says nothing.
 */
#include <string.h>
#include <sys/stat.h>

#include "fuse_internal.h"

/* The root of a mount is node 1; others are above it. */
static uint64_t node_of(const struct nf_tree *tree, uint64_t nid)
{
	return nid == tree->root ? NF_FUSE_ROOT : nid + 2;
}

static bool find(const struct nf_tree *tree, uint64_t node, struct nf_node *out)
{
	return node && nf_tree_node(tree, node == NF_FUSE_ROOT ? tree->root : node - 2, out);
}

static struct fuse_attr attributes_of(const struct nf_tree *tree, const struct nf_node *n)
{
	uint64_t whole = (n->size + tree->block_size - 1) & ~(uint64_t)(tree->block_size - 1);
	struct fuse_attr attr = {
		.ino = n->nid,
		.size = n->size,
		.blocks = whole / 512,
		.atime = n->mtime,
		.mtime = n->mtime,
		.ctime = n->mtime,
		.atimensec = n->nsec,
		.mtimensec = n->nsec,
		.ctimensec = n->nsec,
		.mode = n->mode,
		.nlink = n->nlink,
		.uid = n->uid,
		.gid = n->gid,
		.blksize = tree->block_size,
	};

	if (S_ISCHR(n->mode) || S_ISBLK(n->mode))
		attr.rdev = n->i_u;
	return attr;
}

static struct fuse_entry_out entry_of(const struct nf_tree *tree, const struct nf_node *n)
{
	return (struct fuse_entry_out){
		.nodeid = node_of(tree, n->nid),
		.entry_valid = NF_FUSE_VALID_S,
		.attr_valid = NF_FUSE_VALID_S,
		.attr = attributes_of(tree, n),
	};
}

/* The name that a message ends with, of at most `room` bytes that are on record. */
static const uint8_t *name_of(struct nf_transport *t, uint32_t slot,
			      const struct fuse_in_header *in, uint32_t before, uint32_t *len)
{
	uint32_t room = NF_FUSE_HEAD - (uint32_t)sizeof(*in) - before;
	const uint8_t *name = nf_fuse_body(t, slot) + before;

	*len = in->len > sizeof(*in) + before ? in->len - (uint32_t)sizeof(*in) - before : 0;
	*len = (uint32_t)strnlen((const char *)name, *len < room ? *len : room);
	return name;
}

static void reply_lookup(struct nf_transport *t, uint32_t slot, const struct nf_tree *tree,
			 const struct nf_node *directory, const struct fuse_in_header *in)
{
	struct fuse_entry_out out = { .entry_valid = NF_FUSE_VALID_S };
	struct nf_node found;
	uint64_t nid;
	uint32_t len;
	const uint8_t *name = name_of(t, slot, in, 0, &len);
	int rc;

	if (len > NF_NAME_MAX) {
		nf_fuse_reply(t, slot, ENAMETOOLONG, NULL, 0);
		return;
	}
	rc = S_ISDIR(directory->mode) ? nf_tree_lookup(tree, directory, name, len, &nid) : -ENOTDIR;
	if (!rc && !nf_tree_node(tree, nid, &found))
		rc = -EIO;
	if (!rc)
		out = entry_of(tree, &found);
	/* node 0: the kernel may believe for as long that there is none */
	if (!rc || rc == -ENOENT)
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
	else
		nf_fuse_reply(t, slot, -rc, NULL, 0);
}

/* -- directories ------------------------------------------------------------------------------- */

/* An entry with its attributes (READDIRPLUS) or without; its size, or 0: it does not fit. */
static size_t put_entry(const struct nf_tree *tree, const struct nf_entry *e, uint64_t next,
			bool plus, uint8_t *to, size_t room)
{
	size_t head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	size_t size = FUSE_DIRENT_ALIGN(head + e->len);
	struct fuse_dirent d = { .ino = e->nid, .off = next, .namelen = e->len, .type = e->type };
	bool dots = e->name[0] == '.' && (e->len == 1 || (e->len == 2 && e->name[1] == '.'));
	struct fuse_entry_out out = { 0 };
	struct nf_node node;

	if (size > room)
		return 0;
	memset(to, 0, size);
	if (plus) {	/* node 0: the kernel does not take up this one */
		if (!dots && nf_tree_node(tree, e->nid, &node))
			out = entry_of(tree, &node);
		memcpy(to, &out, sizeof(out));
	}
	memcpy(to + head - FUSE_NAME_OFFSET, &d, FUSE_NAME_OFFSET);
	memcpy(to + head, e->name, e->len);
	return size;
}

static void reply_entries(struct nf_transport *t, uint32_t slot, const struct nf_tree *tree,
			  const struct nf_node *directory, bool plus)
{
	struct fuse_read_in in;
	struct nf_entry e;
	uint8_t *buffer;
	uint64_t pos;
	size_t len = 0, size, room;
	int rc = -EIO;

	memcpy(&in, nf_fuse_body(t, slot), sizeof(in));
	buffer = S_ISDIR(directory->mode) ? nf_fuse_take_buffer(t) : NULL;
	if (!buffer) {
		nf_fuse_reply(t, slot, EIO, NULL, 0);
		return;
	}
	room = in.size < NF_FUSE_BUFFER ? in.size : NF_FUSE_BUFFER;
	for (pos = in.offset; (rc = nf_tree_entry(tree, directory, &pos, &e)) > 0; len += size) {
		size = put_entry(tree, &e, pos, plus, buffer + len, room - len);
		if (!size)
			break;
	}
	nf_fuse_reply(t, slot, rc < 0 && !len ? EIO : 0, buffer, len);
	nf_fuse_give_buffer(t, buffer);
}

static void reply_link(struct nf_transport *t, uint32_t slot, const struct nf_tree *tree,
		       const struct nf_node *n)
{
	uint8_t target[NF_LINK_MAX];
	int len = nf_tree_link(tree, n, target);

	nf_fuse_reply(t, slot, len < 0 ? -len : 0, target, len < 0 ? 0 : (size_t)len);
}

/* -- xattrs ------------------------------------------------------------------------------------ */

/* A value or a list, to who asks for its size (0) or for all of it. */
static void reply_sized(struct nf_transport *t, uint32_t slot, uint32_t asked, const uint8_t *data,
			size_t len)
{
	struct fuse_getxattr_out out = { .size = (uint32_t)len };

	if (!asked)
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
	else
		nf_fuse_reply(t, slot, len > asked ? ERANGE : 0, data, len);
}

static void reply_xattr(struct nf_transport *t, uint32_t slot, const struct nf_tree *tree,
			const struct nf_node *n, const struct fuse_in_header *in)
{
	struct fuse_getxattr_in asked;
	struct nf_xattr x;
	uint64_t at = 0;
	uint32_t len;
	const uint8_t *name = name_of(t, slot, in, sizeof(asked), &len);
	int rc;

	memcpy(&asked, nf_fuse_body(t, slot), sizeof(asked));
	while ((rc = nf_tree_xattr(tree, n, &at, &x)) > 0) {
		size_t prefix = strlen(x.prefix);

		if (prefix + x.name_len == len && !memcmp(name, x.prefix, prefix) &&
		    !memcmp(name + prefix, x.name, x.name_len)) {
			reply_sized(t, slot, asked.size, x.value, x.value_len);
			return;
		}
	}
	nf_fuse_reply(t, slot, rc ? EIO : ENODATA, NULL, 0);
}

static void reply_xattr_names(struct nf_transport *t, uint32_t slot, const struct nf_tree *tree,
			      const struct nf_node *n, const struct fuse_in_header *in)
{
	struct fuse_getxattr_in asked;
	uint8_t *buffer = nf_fuse_take_buffer(t);
	struct nf_xattr x;
	uint64_t at = 0;
	size_t len = 0;
	int rc = -EIO;

	memcpy(&asked, nf_fuse_body(t, slot), sizeof(asked));
	while (buffer && (rc = nf_tree_xattr(tree, n, &at, &x)) > 0) {
		size_t prefix = strlen(x.prefix);

		if (in->uid && !strcmp(x.prefix, "trusted."))
			continue;	/* as the kernel's file systems list them */
		if (len + prefix + x.name_len + 1 > NF_FUSE_BUFFER) {
			rc = -EIO;
			break;
		}
		memcpy(buffer + len, x.prefix, prefix);
		memcpy(buffer + len + prefix, x.name, x.name_len);
		len += prefix + x.name_len;
		buffer[len++] = 0;
	}
	if (rc)
		nf_fuse_reply(t, slot, EIO, NULL, 0);
	else
		reply_sized(t, slot, asked.size, buffer, len);
	if (buffer)
		nf_fuse_give_buffer(t, buffer);
}

/* -- the server -------------------------------------------------------------------------------- */

static void reply_statistics(struct nf_transport *t, uint32_t slot, const struct nf_tree *tree)
{
	struct fuse_statfs_out out = {
		.st = { .blocks = tree->blocks,
			.files = UINT64_MAX,
			.ffree = UINT64_MAX - tree->inodes,
			.bsize = tree->block_size,
			.frsize = tree->block_size,
			.namelen = NF_NAME_MAX },
	};

	nf_fuse_reply(t, slot, 0, &out, sizeof(out));
}

static bool handle(struct nf_transport *t, uint32_t slot, const struct nf_fuse_connection *c,
		   const struct fuse_in_header *in)
{
	const struct nf_tree *tree = &c->shown.tree;
	struct fuse_attr_out attributes = { .attr_valid = NF_FUSE_VALID_S };
	struct nf_node n;

	switch (in->opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_READLINK:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_STATFS:
		break;
	default:
		return false;
	}
	if (!find(tree, in->nodeid, &n)) {
		nf_fuse_reply(t, slot, EIO, NULL, 0);
		return true;
	}
	switch (in->opcode) {
	case FUSE_LOOKUP:
		reply_lookup(t, slot, tree, &n, in);
		break;
	case FUSE_GETATTR:
		attributes.attr = attributes_of(tree, &n);
		nf_fuse_reply(t, slot, 0, &attributes, sizeof(attributes));
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		reply_entries(t, slot, tree, &n, in->opcode == FUSE_READDIRPLUS);
		break;
	case FUSE_READLINK:
		reply_link(t, slot, tree, &n);
		break;
	case FUSE_GETXATTR:
		reply_xattr(t, slot, tree, &n, in);
		break;
	case FUSE_LISTXATTR:
		reply_xattr_names(t, slot, tree, &n, in);
		break;
	default:
		reply_statistics(t, slot, tree);
	}
	return true;
}

static int piece(struct nf_transport *t, const struct nf_fuse_connection *c, uint64_t node,
		 uint64_t off, uint64_t len, struct nf_fuse_piece *out)
{
	struct nf_node n;
	uint32_t device = 0;
	int rc;

	(void)t;
	*out = (struct nf_fuse_piece){ .len = len };
	if (!find(&c->shown.tree, node, &n))
		return -EIO;
	rc = nf_tree_data(&c->shown.tree, &n, off, &out->len, &device, &out->off);
	if (rc || !out->len)
		return rc;
	if (device >= c->shown.nobjects)
		return -EIO;
	out->object = c->shown.objects[device];
	return 0;
}

const struct nf_fuse_server nf_fuse_tree = {
	.init_flags = FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_CACHE_SYMLINKS | FUSE_POSIX_ACL,
	.handle = handle,
	.piece = piece,
};
