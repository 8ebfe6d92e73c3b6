/*
 * Events of fanotify as bytes: records, answers as words, and what becomes of an event that was read.
 *
 * A record is taken while its event_len is not 0.
 */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fanotify_internal.h"

/* Debian 12's headers are older than these */
#define INFO_TYPE_RANGE 6
#define DENY_ERRNO(e) (FAN_DENY | ((uint32_t)(e) & 0xff) << 24)

#define EMFILE_PAUSE_US 1000

struct range_info {
	uint8_t type;
	uint8_t pad;
	uint16_t len;
	uint32_t pad2;
	uint64_t offset;
	uint64_t count;
};

struct fanotify_event_metadata *nf_fanotify_record(const struct nf_transport *t, uint32_t slot)
{
	return nf_transport_record(t, slot);
}

static void clear(const struct nf_transport *t, uint32_t slot)
{
	t->area.meta[slot].object = 0;
	__atomic_store_n(&nf_fanotify_record(t, slot)->event_len, 0, __ATOMIC_RELEASE);
}

uint32_t nf_fanotify_word(int err)
{
	return !err ? FAN_ALLOW : err == ENOSPC ? DENY_ERRNO(ENOSPC) : DENY_ERRNO(EIO);
}

/* ENOENT: the reader was killed, or a predecessor answered before it died. */
void nf_fanotify_write(int group, struct fanotify_response response)
{
	ssize_t n = write(group, &response, sizeof(response));

	if (n < 0 && errno == EINVAL && response.response != FAN_ALLOW) {
		response.response = FAN_DENY;	/* a kernel that knows no errno in an answer */
		n = write(group, &response, sizeof(response));
	}
	(void)n;
}

int nf_fanotify_settled(struct nf_request *r)
{
	int fd = r->owns_fd ? r->fd : -1;

	clear(r->via, r->slot);
	nf_request_release(r);
	return fd;
}

/* -- events ------------------------------------------------------------------------------------ */

bool nf_fanotify_range(const struct fanotify_event_metadata *m, uint64_t *off, uint64_t *len)
{
	const uint8_t *p = (const uint8_t *)m + m->metadata_len;
	const uint8_t *end = (const uint8_t *)m + m->event_len;
	struct range_info info;

	if (m->event_len > NF_FANOTIFY_EVENT || p + sizeof(info) > end)
		return false;
	memcpy(&info, p, sizeof(info));
	if (info.type != INFO_TYPE_RANGE)
		return false;
	*off = info.offset;
	*len = info.count;
	return true;
}

static void handle(struct nf_transport *t, uint32_t slot)
{
	struct fanotify_event_metadata *m = nf_fanotify_record(t, slot);
	struct nf_request *r;
	struct nf_object *o;
	struct stat st;

	atomic_fetch_add(&t->core->events, 1);
	if (m->fd < 0) {		/* queue overflow: nothing to answer */
		clear(t, slot);
		return;
	}
	r = nf_request_take(t, slot);
	r->fd = m->fd;
	r->owns_fd = true;
	atomic_store(&r->t_ns, nf_now_ns());
	if (!nf_fanotify_range(m, &r->off, &r->len) || fstat(m->fd, &st) < 0) {
		nf_request_answer(r, EIO);
		return;
	}
	o = nf_object_by_inode(&t->core->table, st.st_dev, st.st_ino);
	if (!o) {	/* a file that we do not serve any more: never its holes */
		nf_request_answer(r, EIO);
		return;
	}
	r->object = o->id;
	t->area.meta[slot].t_ns = atomic_load(&r->t_ns);
	__atomic_store_n(&t->area.meta[slot].object, o->id, __ATOMIC_RELEASE);
	nf_request_admit(o, r, m->pid);
	nf_object_put(o);
}

static bool is_free(const struct nf_transport *t, uint32_t slot)
{
	return !atomic_load(&t->requests[slot].used);
}

uint32_t nf_fanotify_free_run(struct nf_fanotify *f, uint32_t *n)
{
	const struct nf_transport *t = &f->t;
	uint32_t tried, first;

	for (tried = 0; tried < t->slots; tried++) {
		first = (f->cursor + tried) % t->slots;
		if (!is_free(t, first))
			continue;
		*n = 1;
		while (*n < NF_FANOTIFY_RUN && first + *n < t->slots && is_free(t, first + *n))
			++*n;
		f->cursor = (first + *n) % t->slots;
		return first;
	}
	*n = 0;
	return 0;
}

/*
 * A record that is not 48 bytes long (an overflow event has 24) does not end on
 * a record's border: move what follows there.  Returns the records in use.
 */
static uint32_t align_records(struct nf_transport *t, uint32_t first, size_t bytes, uint32_t room)
{
	uint8_t *at = (uint8_t *)nf_fanotify_record(t, first);
	uint32_t slots = 0, len;

	while (bytes >= sizeof(struct fanotify_event_metadata) && slots < room) {
		memcpy(&len, at, sizeof(len));
		if (len < sizeof(struct fanotify_event_metadata) || len > bytes)
			break;
		if (len < NF_FANOTIFY_EVENT && bytes > len &&
		    bytes - len <= (size_t)(room - slots - 1) * NF_FANOTIFY_EVENT)
			memmove(at + NF_FANOTIFY_EVENT, at + len, bytes - len);
		bytes -= len;
		at += NF_FANOTIFY_EVENT;
		slots++;
	}
	return slots;
}

/* Is the group at fault?  Else one event was: its file did not open, and the kernel denied it. */
static bool is_ours(int err)
{
	return err == EBADF || err == EINVAL || err == EFAULT;
}

enum nf_more nf_fanotify_took(struct nf_fanotify *f, uint32_t first, uint32_t room, int res,
			      uint32_t *n)
{
	struct nf_transport *t = &f->t;
	uint32_t i;

	*n = 1;
	if (!res || res == -EAGAIN)
		return NF_EMPTY;
	if (res < 0 && is_ours(-res)) {
		nf_queue_push(&t->core->queue, &(struct nf_event){ .type = NF_EV_BROKEN, .fd = -1,
								   .len = (uint64_t)-res });
		return NF_FAILED;
	}
	if (res < 0) {
		/* the kernel has denied that event; others may fare better soon */
		if (res == -EMFILE || res == -ENFILE || res == -ETXTBSY)
			usleep(EMFILE_PAUSE_US);
		return NF_MORE;
	}
	*n = align_records(t, first, (size_t)res, room);
	for (i = 0; i < *n; i++)
		handle(t, first + i);
	return NF_MORE;		/* who was answered asks again before a wait would be over */
}
