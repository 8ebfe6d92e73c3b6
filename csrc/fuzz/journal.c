/*
 * Any journal that a predecessor may leave: it is refused, or taken up so that everything in
 * it is answered once and nothing is left on record.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cachefiles.h"
#include "core_internal.h"
#include "fuzz.h"

#define SLOTS 8u
#define OBJECTS 3u

static size_t len;

/* Records as the input says, in areas as it says, whose header it may change a little. */
static uint8_t *make_journal(struct input *in)
{
	uint8_t *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct nf_journal_header *h = (struct nf_journal_header *)mem;
	uint32_t i, k, flips;

	MUST(mem != MAP_FAILED && nf_journal_format(mem, len, SLOTS) == 0);
	flips = (uint32_t)take(in, 1);
	for (i = 0; i < h->nareas; i++) {
		struct nf_journal_area *a = &h->areas[i];

		a->used = (uint32_t)take(in, 1) % (SLOTS + 1);
		for (k = 0; k < SLOTS; k++) {
			uint8_t *record = mem + a->records_off + k * a->record_size;
			struct nf_journal_meta *meta = (void *)(mem + a->meta_off + k * sizeof(*meta));
			size_t n = take(in, 1) % 64, got;
			uint8_t *bytes = take_copy(in, n, &got);

			if (got)
				memcpy(record, bytes, got);
			free(bytes);
			meta->object = (uint32_t)take(in, 1) % (OBJECTS + 2);
			if (a->kind == NF_AREA_FANOTIFY)	/* numbers that nobody here has */
				((int32_t *)record)[4] = 500 + (int32_t)(((uint32_t *)record)[4] % 64);
		}
	}
	for (i = 0; flips > 200 && i < flips - 200; i++)
		((uint8_t *)h)[take(in, 2) % sizeof(*h)] = (uint8_t)take(in, 1);
	return mem;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t pages[OBJECTS + 1][8];
	static struct nf_event ev;
	struct input in = { data, size };
	uint8_t *mem;
	struct nf_core *c;
	struct nf_stats stats;
	int fan[2], device[2];
	uint32_t what, cursor, id;
	bool all_served, resent;

	len = nf_journal_size(SLOTS);
	all_served = take(&in, 1) & 1;
	resent = take(&in, 1) & 1;
	mem = make_journal(&in);
	c = nf_core_new(mem, len, NF_NO_URING);
	if (!c) {
		munmap(mem, len);
		return 0;
	}
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fan) == 0);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, device) == 0);
	nf_core_attach_fanotify(c, fan[0]);
	nf_core_attach_cachefiles(c, device[0]);
	memset(pages, 0, sizeof(pages));
	memset(pages[2], 0xff, sizeof(pages[2]));
	for (id = 1; id <= OBJECTS; id++)
		MUST(nf_object_add(c, id, id == 3 ? 0 : 1, id == 3 ? 0 : id, fan[1], id * 5000, pages[id],
				   id == 3) == 0);
	MUST(nf_object_bind_kernel(c, 3, 7, dup(fan[1])) == 0);
	for (what = NF_INHERITED_OPENS; what <= NF_INHERITED_OBJECTS; what++) {
		cursor = 0;
		while (nf_cachefiles_inherited(c, what, &cursor, &ev))
			MUST(ev.fd == -1 && ev.volume_len < NF_KEY_MAX && ev.cookie_len <= NF_KEY_MAX);
	}
	if (resent)
		nf_cachefiles_resent(c);
	MUST(nf_core_settle(c, all_served) >= 0);
	while (nf_core_next(c, &ev, 1, 0))
		if (ev.type == NF_EV_MISS && ev.off / NF_PAGE % 2)
			nf_filled(c, ev.object, ev.off, NF_PAGE);
	nf_expire(c, 0, EIO);
	nf_core_stats(c, &stats);
	MUST(stats.pending == 0);
	/* fanotify's are all answered: none is left that a successor would answer again */
	MUST(!c->transports[0] || atomic_load(&c->transports[0]->in_use) == 0);
	for (id = 1; id <= OBJECTS; id++)
		MUST(nf_object_remove(c, id) == 0);
	nf_core_free(c);
	for (id = 0; id < 2; id++) {
		close(fan[id]);
		close(device[id]);
	}
	munmap(mem, len);
	return 0;
}
