/*
 * Objects as files of the root directory, each named by its id in decimal, on which the kernel's
 * EROFS is mounted.  Object N is node N + 1.
 *
 * Files are whole pages, the rest of the last one zeros: a loop device has whole sectors only, and
 * an answer that is shorter than the kernel expects would cut the file.
 */
#include <string.h>
#include <sys/stat.h>

#include "fuse_internal.h"

static struct nf_object *object_of(struct nf_transport *t, uint64_t node)
{
	if (node <= NF_FUSE_ROOT || node - 1 > UINT32_MAX)
		return NULL;
	return nf_object_by_id(&t->core->table, (uint32_t)(node - 1));
}

static uint64_t whole_pages(uint64_t size)
{
	return (size + NF_PAGE - 1) & ~(uint64_t)(NF_PAGE - 1);
}

/* False: it is not a node. */
static bool attributes_of(struct nf_transport *t, uint64_t node, struct fuse_attr *attr)
{
	struct nf_object *o;

	memset(attr, 0, sizeof(*attr));
	attr->ino = node;
	attr->nlink = 1;
	attr->blksize = NF_PAGE;
	if (node == NF_FUSE_ROOT) {
		attr->mode = S_IFDIR | 0500;
		return true;
	}
	o = object_of(t, node);
	if (!o)
		return false;
	attr->mode = S_IFREG | 0400;
	attr->size = whole_pages(o->size);
	attr->blocks = attr->size / 512;
	nf_object_put(o);
	return true;
}

static void reply_attributes(struct nf_transport *t, uint32_t slot, uint64_t node)
{
	struct fuse_attr_out out = { .attr_valid = NF_FUSE_VALID_S };

	if (attributes_of(t, node, &out.attr))
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
	else
		nf_fuse_reply(t, slot, EIO, NULL, 0);
}

/* The object of a file name: a decimal number without anything else.  0: none. */
static uint64_t number_of(const char *name, size_t len)
{
	uint64_t number = 0;
	size_t i;

	for (i = 0; i < len && name[i]; i++) {
		if (name[i] < '0' || name[i] > '9' || i > 9)
			return 0;
		number = number * 10 + (uint64_t)(name[i] - '0');
	}
	return i == len || name[0] == '0' ? 0 : number;
}

static void reply_lookup(struct nf_transport *t, uint32_t slot, const struct fuse_in_header *in)
{
	struct fuse_entry_out out = { .entry_valid = NF_FUSE_VALID_S, .attr_valid = NF_FUSE_VALID_S };
	size_t room = NF_FUSE_HEAD - sizeof(*in), len = in->len - sizeof(*in);
	uint64_t number = number_of((const char *)nf_fuse_body(t, slot), len < room ? len : room);

	if (in->nodeid == NF_FUSE_ROOT && number && attributes_of(t, number + 1, &out.attr)) {
		out.nodeid = number + 1;
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
	} else {
		nf_fuse_reply(t, slot, ENOENT, NULL, 0);
	}
}

static bool handle(struct nf_transport *t, uint32_t slot, const struct nf_fuse_connection *c,
		   const struct fuse_in_header *in)
{
	(void)c;
	switch (in->opcode) {
	case FUSE_LOOKUP:
		reply_lookup(t, slot, in);
		return true;
	case FUSE_GETATTR:
		reply_attributes(t, slot, in->nodeid);
		return true;
	default:
		return false;
	}
}

static int piece(struct nf_transport *t, const struct nf_fuse_connection *c, uint64_t node,
		 uint64_t off, uint64_t len, struct nf_fuse_piece *out)
{
	struct nf_object *o = object_of(t, node);
	uint64_t size = o ? whole_pages(o->size) : UINT64_MAX;

	(void)c;
	if (o)
		nf_object_put(o);
	if (node <= NF_FUSE_ROOT || node - 1 > UINT32_MAX)
		return -EIO;
	*out = (struct nf_fuse_piece){ .object = node - 1, .off = off };
	if (off < size)
		out->len = len < size - off ? len : size - off;
	return 0;
}

const struct nf_fuse_server nf_fuse_files = { .handle = handle, .piece = piece };
