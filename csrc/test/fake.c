#include "fake.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define FAKE_AREA 100u

static struct fake_ask *record(const struct nf_transport *t, uint32_t slot)
{
	return nf_transport_record(t, slot);
}

static void answer(struct nf_transport *t, struct nf_request *r, int err)
{
	struct fake_answer a = { (uint32_t)r->unique, err };
	ssize_t n = send(atomic_load(&t->fd), &a, sizeof(a), MSG_NOSIGNAL);

	(void)n;
	__atomic_store_n(&record(t, r->slot)->taken, 0, __ATOMIC_RELEASE);
	nf_request_release(r);
}

static void admit(struct nf_request *r, bool all_served)
{
	const struct fake_ask *a = record(r->via, r->slot);
	struct nf_object *o = nf_object_by_id(&r->via->core->table, a->object);

	r->unique = a->unique;
	r->off = a->off;
	r->len = a->len;
	r->object = a->object;
	atomic_store(&r->t_ns, nf_now_ns());
	if (!a->object && all_served) {
		nf_request_admit_everywhere(r);
	} else if (o) {
		nf_request_admit(o, r, (int)a->unique);
	} else {
		nf_request_answer(r, EIO);
	}
	if (o)
		nf_object_put(o);
}

static enum nf_more drain(struct nf_transport *t, unsigned int budget)
{
	uint32_t slot;
	ssize_t n;

	for (; budget; budget--) {
		for (slot = 0; slot < t->slots && atomic_load(&t->requests[slot].used); slot++)
			;
		if (slot == t->slots)
			return NF_NO_SLOT;
		n = recv(atomic_load(&t->fd), record(t, slot), sizeof(struct fake_ask), MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			return NF_EMPTY;
		if (n != sizeof(struct fake_ask)) {
			nf_queue_push(&t->core->queue, &(struct nf_event){ .type = NF_EV_BROKEN });
			return NF_FAILED;
		}
		atomic_fetch_add(&t->core->events, 1);
		admit(nf_request_take(t, slot), false);
	}
	return NF_MORE;
}

static int occupy(struct nf_transport *t)
{
	uint32_t slot;

	for (slot = 0; slot < t->slots; slot++)
		if (record(t, slot)->taken)
			nf_request_take(t, slot);
	return 0;
}

static int settle(struct nf_transport *t, bool all_served)
{
	uint32_t slot;
	int n = 0;

	for (slot = 0; slot < t->slots; slot++) {
		if (atomic_load(&t->requests[slot].used)) {
			admit(&t->requests[slot], all_served);
			n++;
		}
	}
	return n;
}

const struct nf_transport_ops fake_ops = {
	.name = "fake",
	.kind = FAKE_AREA,
	.record_size = sizeof(struct fake_ask),
	.size = sizeof(struct nf_transport),
	.occupy = occupy,
	.settle = settle,
	.arm = nf_transport_arm,
	.drain = drain,
	.answer = answer,
};

static void make_core(struct rig *r)
{
	static const struct nf_transport_ops *const kinds[] = { &fake_ops };

	r->core = nf_core_make(kinds, 1, r->journal, r->journal_len, r->flags);
	CHECK(r->core);
	r->fake = r->core->transports[0];
	atomic_store(&r->fake->fd, r->ours);
}

void rig_new(struct rig *r, uint32_t slots, uint32_t flags)
{
	static const struct nf_transport_ops *const kinds[] = { &fake_ops };
	struct nf_area_spec specs[NF_JOURNAL_AREAS];
	unsigned int n = nf_core_areas(kinds, 1, slots, specs);
	int ends[2];

	r->flags = flags;
	r->journal_len = nf_journal_bytes(specs, n);
	r->journal = mmap(NULL, r->journal_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(r->journal != MAP_FAILED);
	CHECK(nf_journal_make(r->journal, r->journal_len, specs, n) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	r->kernel = ends[0];
	r->ours = ends[1];
	make_core(r);
}

void rig_reborn(struct rig *r)
{
	nf_core_free(r->core);
	make_core(r);
}

void rig_free(struct rig *r)
{
	nf_core_free(r->core);
	close(r->kernel);
	close(r->ours);
	munmap(r->journal, r->journal_len);
}

uint8_t *rig_object(struct rig *r, uint32_t id, uint64_t size, bool present, int *fd)
{
	uint8_t *pages = calloc(1, size / NF_PAGE / 8 + 1);
	char name[] = "/tmp/nf-test-XXXXXX";

	CHECK(pages);
	*fd = mkostemp(name, O_CLOEXEC);
	CHECK(*fd >= 0 && unlink(name) == 0 && ftruncate(*fd, (off_t)size) == 0);
	CHECK(nf_object_add(r->core, id, 1, id, *fd, size, pages, 0) == 0);
	if (present)
		CHECK(nf_filled(r->core, id, 0, size) == 0);
	return pages;
}

void ask(struct rig *r, uint32_t unique, uint32_t object, uint64_t off, uint64_t len)
{
	struct fake_ask a = { 1, unique, object, 0, off, len };

	CHECK(send(r->kernel, &a, sizeof(a), MSG_NOSIGNAL) == sizeof(a));
}

struct fake_answer answer_within(struct rig *r, int timeout_ms)
{
	struct pollfd p = { r->kernel, POLLIN, 0 };
	struct fake_answer a = { 0, 0 };

	if (poll(&p, 1, timeout_ms) > 0)
		CHECK(recv(r->kernel, &a, sizeof(a), 0) == sizeof(a));
	return a;
}

struct nf_event event_within(struct rig *r, int timeout_ms)
{
	struct nf_event ev = { 0 };

	nf_core_next(r->core, &ev, 1, timeout_ms);
	return ev;
}
