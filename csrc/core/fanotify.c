/*
 * The fanotify dialect (reference kernel-transports 2.5, 2.7).
 *
 * An answer is matched by the number of the event's descriptor, first match in
 * the group's list; so a number must not come into use again before its answer
 * is written: answer, clear the slot, close, in this order.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core_internal.h"

/* Debian 12's headers are older than these */
#define INFO_TYPE_RANGE 6
#define DENY_ERRNO(e) (FAN_DENY | ((uint32_t)(e) & 0xff) << 24)

#define RUN_MAX 64u		/* events that one read may bring */
#define EMFILE_PAUSE_US 1000

struct range_info {
	uint8_t type;
	uint8_t pad;
	uint16_t len;
	uint32_t pad2;
	uint64_t offset;
	uint64_t count;
};

static struct fanotify_event_metadata *record(struct nf_core *c, uint32_t slot)
{
	return (struct fanotify_event_metadata *)(c->journal.events + (size_t)slot * NF_EVENT_SIZE);
}

void nf_fanotify_answer(struct nf_core *c, uint32_t slot, int err)
{
	struct nf_slot *s = &c->slots[slot];
	struct fanotify_response r = { .fd = s->fd, .response = FAN_ALLOW };
	int fd = s->owns_fd ? s->fd : -1;

	if (err)
		r.response = err == ENOSPC ? DENY_ERRNO(ENOSPC) : DENY_ERRNO(EIO);
	/* ENOENT: the reader was killed, or a predecessor answered before it died */
	if (write(c->fan_fd, &r, sizeof(r)) < 0 && errno == EINVAL && err) {
		ssize_t n;

		r.response = FAN_DENY;
		n = write(c->fan_fd, &r, sizeof(r));
		(void)n;
	}
	s->t_ns = 0;
	nf_journal_clear(&c->journal, slot);
	if (fd >= 0)
		close(fd);
}

/* off and len of an event; false when it has no range (which pre-content events always have) */
static bool range_of(const struct fanotify_event_metadata *m, uint64_t *off, uint64_t *len)
{
	const uint8_t *p = (const uint8_t *)m + m->metadata_len;
	const uint8_t *end = (const uint8_t *)m + m->event_len;
	struct range_info info;

	if (m->event_len > NF_EVENT_SIZE || p + sizeof(info) > end)
		return false;
	memcpy(&info, p, sizeof(info));
	if (info.type != INFO_TYPE_RANGE)
		return false;
	*off = info.offset;
	*len = info.count;
	return true;
}

static void handle(struct nf_core *c, uint32_t slot)
{
	struct fanotify_event_metadata *m = record(c, slot);
	struct nf_slot *s = &c->slots[slot];
	struct nf_object *o;
	struct stat st;

	atomic_fetch_add(&c->events, 1);
	memset(s, 0, sizeof(*s));
	s->fd = m->fd;
	s->owns_fd = true;
	s->t_ns = nf_now_ns();
	s->next = NF_NO_SLOT;
	if (m->fd < 0) {		/* queue overflow: nothing to answer */
		s->owns_fd = false;
		nf_journal_clear(&c->journal, slot);
		return;
	}
	if (!range_of(m, &s->off, &s->len) || fstat(m->fd, &st) < 0) {
		nf_answer(c, slot, EIO);
		return;
	}
	o = nf_get_inode(c, st.st_dev, st.st_ino);
	if (!o) {	/* a file that we do not serve any more: never its holes */
		nf_answer(c, slot, EIO);
		return;
	}
	c->journal.meta[slot].t_ns = s->t_ns;
	__atomic_store_n(&c->journal.meta[slot].object, o->id, __ATOMIC_RELEASE);
	nf_admit(c, o, slot, m->pid);
	nf_put(o);
}

/* The next run of free slots: *n of them from the returned one; *n is 0 when all are taken. */
static uint32_t free_run(struct nf_core *c, uint32_t *n)
{
	uint32_t tried, first;

	for (tried = 0; tried < c->journal.nslots; tried++) {
		first = (c->cursor + tried) % c->journal.nslots;
		if (nf_journal_taken(&c->journal, first))
			continue;
		*n = 1;
		while (*n < RUN_MAX && first + *n < c->journal.nslots &&
		       !nf_journal_taken(&c->journal, first + *n))
			++*n;
		c->cursor = (first + *n) % c->journal.nslots;
		return first;
	}
	*n = 0;
	return 0;
}

/*
 * A record that is not 48 bytes long (an overflow event has 24) does not end on
 * a slot's border: move what follows there.  Returns the slots in use.
 */
static uint32_t align_records(struct nf_core *c, uint32_t first, size_t bytes, uint32_t room)
{
	uint8_t *at = (uint8_t *)record(c, first);
	uint32_t slots = 0, len;

	while (bytes >= sizeof(struct fanotify_event_metadata) && slots < room) {
		memcpy(&len, at, sizeof(len));
		if (len < sizeof(struct fanotify_event_metadata) || len > bytes)
			break;
		if (len < NF_EVENT_SIZE && bytes > len &&
		    bytes - len <= (size_t)(room - slots - 1) * NF_EVENT_SIZE)
			memmove(at + NF_EVENT_SIZE, at + len, bytes - len);
		bytes -= len;
		at += NF_EVENT_SIZE;
		slots++;
	}
	return slots;
}

/* Is the group at fault?  Else one event was: its file did not open, and the kernel denied it. */
static bool is_ours(int err)
{
	return err == EBADF || err == EINVAL || err == EFAULT;
}

bool nf_fanotify_drain(struct nf_core *c)
{
	uint32_t n, first, i;
	ssize_t got;

	for (;;) {
		first = free_run(c, &n);
		if (!n)
			return false;
		got = read(c->fan_fd, record(c, first), (size_t)n * NF_EVENT_SIZE);
		if (got < 0 && (errno == EMFILE || errno == ENFILE || errno == ETXTBSY)) {
			/* the kernel has denied that event; others may fare better soon */
			usleep(EMFILE_PAUSE_US);
			continue;
		}
		if (got < 0 && errno != EAGAIN && !is_ours(errno))
			continue;
		if (got <= 0) {
			if (got < 0 && errno != EAGAIN) {
				struct nf_event ev = { .type = NF_EV_BROKEN, .fd = -1,
						       .len = (uint64_t)errno };

				nf_push(c, &ev);
			}
			return true;
		}
		n = align_records(c, first, (size_t)got, n);
		for (i = 0; i < n; i++)
			handle(c, first + i);
	}
}

/* -- take-over ----------------------------------------------------------------------------------- */

/* Keep a number from being given to a new event as long as its old answer is owed. */
static bool occupy(int number)
{
	int any, got;

	if (number < 0 || fcntl(number, F_GETFD) >= 0)
		return false;
	any = eventfd(0, EFD_CLOEXEC);
	if (any < 0 || any == number)
		return any == number;
	got = dup3(any, number, O_CLOEXEC);
	close(any);
	return got == number;
}

void nf_fanotify_occupy(struct nf_core *c)
{
	uint32_t slot;

	for (slot = 0; slot < c->journal.nslots; slot++) {
		struct nf_slot *s = &c->slots[slot];

		if (!nf_journal_taken(&c->journal, slot))
			continue;
		s->fd = record(c, slot)->fd;
		s->next = NF_NO_SLOT;
		s->owns_fd = occupy(s->fd);
		s->t_ns = nf_now_ns();
	}
}

int nf_core_settle(struct nf_core *c, uint32_t all_served)
{
	uint32_t slot;
	int n = 0;

	for (slot = 0; slot < c->journal.nslots; slot++) {
		struct nf_slot *s = &c->slots[slot];
		struct nf_object *o;
		uint32_t id;

		if (!nf_journal_taken(&c->journal, slot))
			continue;
		n++;
		if (!range_of(record(c, slot), &s->off, &s->len)) {
			nf_answer(c, slot, EIO);
			continue;
		}
		id = c->journal.meta[slot].object;
		s->everywhere = id == 0;
		if (id)
			o = nf_get_id(c, id);
		else	/* where it is present in all of them, it is in its own, if that is served */
			o = all_served ? nf_get_next(c, 0, s->off) : NULL;
		if (!o) {
			nf_answer(c, slot, EIO);
			continue;
		}
		nf_admit(c, o, slot, 0);
		nf_put(o);
	}
	return n + nf_cachefiles_settle(c);
}
