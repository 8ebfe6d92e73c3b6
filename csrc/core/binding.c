/* The list of dialects, and the functions of core.h, each handed to the part that does it. */
#include "cachefiles.h"
#include "core_internal.h"
#include "fanotify.h"
#include "fuse.h"

enum { NF_FANOTIFY, NF_CACHEFILES, NF_FUSE, NF_KINDS };

static const struct nf_transport_ops *const KINDS[NF_KINDS] = {
	[NF_FANOTIFY] = &nf_fanotify,
	[NF_CACHEFILES] = &nf_cachefiles,
	[NF_FUSE] = &nf_fuse,
};

/* -- life -------------------------------------------------------------------------------------- */

size_t nf_journal_size(uint32_t slots)
{
	struct nf_area_spec specs[NF_JOURNAL_AREAS];

	return nf_journal_bytes(specs, nf_core_areas(KINDS, NF_KINDS, slots, specs));
}

int nf_journal_format(void *mem, size_t len, uint32_t slots)
{
	struct nf_area_spec specs[NF_JOURNAL_AREAS];

	return nf_journal_make(mem, len, specs, nf_core_areas(KINDS, NF_KINDS, slots, specs));
}

struct nf_core *nf_core_new(void *journal, size_t journal_len, uint32_t flags)
{
	return nf_core_make(KINDS, NF_KINDS, journal, journal_len, flags);
}

/* -- transports -------------------------------------------------------------------------------- */

int nf_core_attach_fanotify(struct nf_core *c, int group_fd)
{
	struct nf_transport *t = c->transports[NF_FANOTIFY];

	return t ? nf_core_attached(c, nf_fanotify_attach(t, group_fd)) : -EPROTO;
}

int nf_core_attach_cachefiles(struct nf_core *c, int dev_fd)
{
	struct nf_transport *t = c->transports[NF_CACHEFILES];

	return t ? nf_core_attached(c, nf_cachefiles_attach(t, dev_fd)) : -EPROTO;
}

int nf_core_attach_fuse(struct nf_core *c, uint32_t connection, int fd)
{
	struct nf_transport *t = c->transports[NF_FUSE];

	return t ? nf_core_attached(c, nf_fuse_attach_files(t, connection, fd)) : -EPROTO;
}

int nf_core_attach_fuse_flat(struct nf_core *c, uint32_t connection, int fd, const uint32_t *objects,
			     const uint64_t *starts, uint32_t n)
{
	struct nf_transport *t = c->transports[NF_FUSE];

	if (!t)
		return -EPROTO;
	return nf_core_attached(c, nf_fuse_attach_flat(t, connection, fd, objects, starts, n));
}

int nf_core_attach_fuse_tree(struct nf_core *c, uint32_t connection, int fd, const uint8_t *image,
			     size_t len, const uint32_t *objects, uint32_t nobjects)
{
	struct nf_transport *t = c->transports[NF_FUSE];

	if (!t)
		return -EPROTO;
	return nf_core_attached(c, nf_fuse_attach_tree(t, connection, fd, image, len, objects,
						       nobjects));
}

int nf_core_detach_fuse(struct nf_core *c, uint32_t connection)
{
	struct nf_transport *t = c->transports[NF_FUSE];

	return t ? nf_fuse_disconnect(t, connection) : -EPROTO;
}

int nf_core_fuse_hold(struct nf_core *c, uint32_t hold)
{
	struct nf_transport *t = c->transports[NF_FUSE];

	if (!t)
		return -EPROTO;
	nf_fuse_wait_for_objects(t, hold);
	return 0;
}

int nf_core_fuse_look_again(struct nf_core *c)
{
	struct nf_transport *t = c->transports[NF_FUSE];

	if (!t)
		return -EPROTO;
	nf_fuse_objects_came(t);
	return 0;
}

int nf_core_keep_by(struct nf_core *c, int socket_fd)
{
	struct nf_transport *t = c->transports[NF_CACHEFILES];

	return t ? nf_cachefiles_keep_by(t, socket_fd) : -EPROTO;
}

int nf_core_settle(struct nf_core *c, uint32_t all_served)
{
	unsigned int i;
	int n = 0;

	for (i = 0; i < c->ntransports; i++)
		if (c->transports[i])
			n += c->transports[i]->ops->settle(c->transports[i], all_served);
	return n;
}

int nf_cachefiles_copen(struct nf_core *c, uint32_t msg_id, int64_t size)
{
	struct nf_transport *t = c->transports[NF_CACHEFILES];

	return t ? nf_cachefiles_answer_open(t, msg_id, size) : -EPROTO;
}

void nf_cachefiles_forget(struct nf_core *c, uint32_t kernel_object)
{
	if (c->transports[NF_CACHEFILES])
		nf_cachefiles_closed(c->transports[NF_CACHEFILES], kernel_object);
}

int nf_cachefiles_inherited(struct nf_core *c, uint32_t what, uint32_t *cursor,
			    struct nf_event *out)
{
	struct nf_transport *t = c->transports[NF_CACHEFILES];

	return t ? nf_cachefiles_next_inherited(t, what, cursor, out) : 0;
}

void nf_cachefiles_resent(struct nf_core *c)
{
	if (c->transports[NF_CACHEFILES])
		nf_cachefiles_sent_again(c->transports[NF_CACHEFILES]);
}

/* -- objects ----------------------------------------------------------------------------------- */

int nf_object_add(struct nf_core *c, uint32_t id, uint64_t dev, uint64_t ino, int fill_fd,
		  uint64_t size, uint8_t *pages, uint32_t aligned)
{
	return nf_table_add(&c->requests.table, id, dev, ino, fill_fd, size, pages, aligned);
}

int nf_object_bind_kernel(struct nf_core *c, uint32_t id, uint32_t kernel_object, int fd)
{
	return nf_table_bind(&c->requests.table, id, kernel_object, fd);
}

int nf_object_remove(struct nf_core *c, uint32_t id)
{
	return nf_requests_remove(&c->requests, id);
}

int nf_object_mark(struct nf_core *c, uint32_t id, uint64_t off)
{
	struct nf_object *o = nf_object_by_id(&c->requests.table, id);
	int rc;

	if (!o)
		return -ENOENT;
	rc = nf_object_set_mark(o, off);
	nf_object_put(o);
	return rc;
}

int nf_object_watch(struct nf_core *c, uint32_t id, uint8_t *asked)
{
	struct nf_object *o = nf_object_by_id(&c->requests.table, id);

	if (!o)
		return -ENOENT;
	nf_object_set_asked(o, asked);
	nf_object_put(o);
	return 0;
}

/* -- requests ---------------------------------------------------------------------------------- */

int nf_core_next(struct nf_core *c, struct nf_event *out, uint32_t max, int timeout_ms)
{
	return nf_queue_next(&c->requests.queue, out, max, timeout_ms);
}

static bool is_of(const struct nf_object *o, uint64_t off, uint64_t len)
{
	return off % NF_PAGE == 0 && off < o->size && len <= o->size - off;
}

int nf_filled(struct nf_core *c, uint32_t id, uint64_t off, uint64_t len)
{
	struct nf_object *o = nf_object_by_id(&c->requests.table, id);
	int rc = 0;

	if (!o)
		return -ENOENT;
	if (is_of(o, off, len)) {
		nf_object_set_present(o, off, len);
		nf_requests_satisfied(&c->requests, o);
	} else {
		rc = -EINVAL;
	}
	nf_object_put(o);
	return rc;
}

int nf_unfill(struct nf_core *c, uint32_t id, uint64_t off, uint64_t len)
{
	struct nf_object *o = nf_object_by_id(&c->requests.table, id);
	int rc = 0;

	if (!o)
		return -ENOENT;
	if (is_of(o, off, len))
		nf_object_clear_present(o, off, len);
	else
		rc = -EINVAL;
	nf_object_put(o);
	return rc;
}

int nf_fail(struct nf_core *c, uint32_t id, uint64_t off, uint64_t len, int err)
{
	struct nf_object *o = nf_object_by_id(&c->requests.table, id);

	if (!o)
		return -ENOENT;
	nf_requests_fail(&c->requests, o, off, len, err);
	nf_object_put(o);
	return 0;
}

int nf_expire(struct nf_core *c, uint64_t age_ns, int err)
{
	return nf_requests_expire(&c->requests, age_ns, err);
}

/* -- fills, trace ------------------------------------------------------------------------------ */

int nf_fill(struct nf_core *c, uint32_t id, const struct rafs_blob *blob, uint32_t unit, uint32_t n,
	    const uint8_t *stored, uint64_t stored_off, uint64_t stored_len, int *error,
	    uint32_t *bad_chunk)
{
	return nf_fill_units(&c->requests, &c->fillers, id, blob, unit, n, stored, stored_off,
			     stored_len, error, bad_chunk);
}

int nf_fill_flat(struct nf_core *c, uint32_t id, uint64_t off, const uint8_t *data, uint64_t len)
{
	return nf_fill_bytes(&c->requests, &c->fillers, id, off, data, len);
}

void nf_fill_trim(struct nf_core *c)
{
	nf_fillers_trim(&c->fillers);
}

int nf_trace_enable(struct nf_core *c, uint32_t n)
{
	return nf_trace_room(&c->requests.trace, n);
}

int nf_trace_read(struct nf_core *c, struct nf_trace_entry *out, uint32_t max)
{
	return nf_trace_take(&c->requests.trace, out, max);
}
