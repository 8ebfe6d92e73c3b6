/*
 * One file, "flat", on which a kernel mounts EROFS that knows no device table (before Linux 5.16):
 * objects one behind another, each from the byte on where a flattened bootstrap says that it
 * begins (rafs_v6/tools/flatten.py), and zeros between.
 */
#include <string.h>
#include <sys/stat.h>

#include "fuse_internal.h"

#define FLAT_NODE (NF_FUSE_ROOT + 1)

/* In whole pages, as fuse_files.c shows it; false: it is not known (yet). */
static bool size_of(struct nf_transport *t, uint32_t object, uint64_t *size)
{
	struct nf_object *o = nf_object_by_id(&t->core->table, object);

	if (!o)
		return false;
	*size = (o->size + NF_PAGE - 1) & ~(uint64_t)(NF_PAGE - 1);
	nf_object_put(o);
	return true;
}

static bool attributes_of(struct nf_transport *t, const struct nf_fuse_connection *c, uint64_t node,
			  struct fuse_attr *attr)
{
	uint32_t last = c->shown.nobjects - 1;
	uint64_t size = 0;

	if (node == FLAT_NODE && !size_of(t, c->shown.objects[last], &size))
		return false;
	*attr = (struct fuse_attr){ .ino = node, .nlink = 1, .blksize = NF_PAGE, .mode = S_IFDIR | 0500 };
	if (node == FLAT_NODE) {
		attr->mode = S_IFREG | 0400;
		attr->size = c->shown.starts[last] + size;
		attr->blocks = attr->size / 512;
	}
	return node == FLAT_NODE || node == NF_FUSE_ROOT;
}

static bool handle(struct nf_transport *t, uint32_t slot, const struct nf_fuse_connection *c,
		   const struct fuse_in_header *in)
{
	static const char name[] = "flat";
	struct fuse_entry_out entry = { .nodeid = FLAT_NODE, .entry_valid = NF_FUSE_VALID_S,
					.attr_valid = NF_FUSE_VALID_S };
	struct fuse_attr_out attributes = { .attr_valid = NF_FUSE_VALID_S };

	switch (in->opcode) {
	case FUSE_LOOKUP:
		if (in->nodeid != NF_FUSE_ROOT || in->len != sizeof(*in) + sizeof(name) ||
		    memcmp(nf_fuse_body(t, slot), name, sizeof(name)))
			nf_fuse_reply(t, slot, ENOENT, NULL, 0);
		else if (attributes_of(t, c, FLAT_NODE, &entry.attr))
			nf_fuse_reply(t, slot, 0, &entry, sizeof(entry));
		else
			nf_fuse_reply(t, slot, EIO, NULL, 0);
		return true;
	case FUSE_GETATTR:
		if (attributes_of(t, c, in->nodeid, &attributes.attr))
			nf_fuse_reply(t, slot, 0, &attributes, sizeof(attributes));
		else
			nf_fuse_reply(t, slot, EIO, NULL, 0);
		return true;
	default:
		return false;
	}
}

static int piece(struct nf_transport *t, const struct nf_fuse_connection *c, uint64_t node,
		 uint64_t off, uint64_t len, struct nf_fuse_piece *out)
{
	const struct nf_fuse_shown *s = &c->shown;
	uint64_t size = UINT64_MAX, end = UINT64_MAX, within;
	uint32_t i = 0;

	if (node != FLAT_NODE)
		return -EIO;
	while (i + 1 < s->nobjects && s->starts[i + 1] <= off)
		i++;
	if (i + 1 < s->nobjects)
		end = s->starts[i + 1] - s->starts[i];
	size_of(t, s->objects[i], &size);
	within = off - s->starts[i];
	*out = (struct nf_fuse_piece){ .object = s->objects[i], .off = within };
	if (size < end && within >= size && i + 1 < s->nobjects)
		*out = (struct nf_fuse_piece){ .len = end - within };
	else if (within < size)
		out->len = (size < end ? size : end) - within;
	if (out->len > len)
		out->len = len;
	return 0;
}

const struct nf_fuse_server nf_fuse_flat = { .handle = handle, .piece = piece };
