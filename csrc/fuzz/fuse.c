/* Any messages of FUSE, in any order, between fills, failures, holds and new connections. */
#include <linux/fuse.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuse.h"
#include "fuzz_core.h"

#define SLOTS 8u
#define STEPS 64u
#define SIZE 20000u

/* As the kernel would, but for what it says. */
static void send_message(struct input *in, int kernel)
{
	uint8_t message[1024] = { 0 };
	struct fuse_in_header h = { .opcode = (uint32_t)take(in, 1), .unique = take(in, 1),
				    .nodeid = take(in, 1) % 8 };
	size_t n = sizeof(h) + take(in, 2) % 512, got;
	uint8_t *body;

	h.len = take(in, 1) % 8 ? (uint32_t)n : (uint32_t)take(in, 4);
	if (h.opcode == FUSE_READ || h.opcode % 2)
		h.opcode = FUSE_READ;
	memcpy(message, &h, sizeof(h));
	body = take_copy(in, take(in, 1), &got);
	if (got)
		memcpy(message + sizeof(h), body, got);
	free(body);
	if (take(in, 1) % 8 == 0)
		n %= sizeof(h) + 1;
	send(kernel, message, n, MSG_DONTWAIT);
}

static void take_events(struct nf_core *c, struct input *in)
{
	static struct nf_event ev;

	while (nf_core_next(c, &ev, 1, 0))
		if (ev.type == NF_EV_MISS && take(in, 1) % 2)
			nf_filled(c, ev.object, ev.off, NF_PAGE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint32_t objects[3] = { 1, 2, 3 };
	static const uint64_t starts[3] = { 0, 5 * NF_PAGE, 12 * NF_PAGE };
	static uint8_t pages[4][8];
	size_t len = nf_journal_size(SLOTS);
	struct input in = { data, size };
	uint8_t *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct nf_transport *t;
	struct nf_core *c;
	struct nf_stats stats;
	uint32_t id, step;
	int device[2], file = memfd_create("fuzz", MFD_CLOEXEC);

	MUST(file >= 0 && ftruncate(file, SIZE) == 0);
	MUST(mem != MAP_FAILED && nf_journal_format(mem, len, SLOTS) == 0);
	c = nf_core_new(mem, len, NF_NO_URING);
	MUST(c);
	t = transport_of(c, &nf_fuse);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, device) == 0);
	MUST(nf_core_attach_fuse(c, 1, device[0]) == 0);
	memset(pages, 0, sizeof(pages));
	for (id = 1; id <= 3; id++)
		MUST(nf_object_add(c, id, 0, 0, file, SIZE - id, pages[id], 0) == 0);
	for (step = 0; step < STEPS && in.len; step++) {
		switch (take(&in, 1) % 10) {
		case 0:
			nf_core_fuse_hold(c, take(&in, 1) % 2);
			break;
		case 1:
			nf_core_fuse_look_again(c);
			break;
		case 2:
			nf_fail(c, 1 + (uint32_t)take(&in, 1) % 3, take(&in, 8), take(&in, 8), EIO);
			break;
		case 3:
			id = 1 + (uint32_t)take(&in, 1) % 3;
			MUST(nf_object_remove(c, id) == 0);
			take_fuse_answers(device[1]);
			MUST(nf_object_add(c, id, 0, 0, file, SIZE - id, pages[id], 0) == 0);
			break;
		case 4:
			nf_unfill(c, 1 + (uint32_t)take(&in, 1) % 3, 0, SIZE);
			break;
		case 5:
			nf_core_detach_fuse(c, 1);
			if (take(&in, 1) % 2)
				nf_core_attach_fuse_flat(c, 1, device[0], objects, starts, 3);
			else
				nf_core_attach_fuse(c, 1, device[0]);
			break;
		default:
			send_message(&in, device[1]);
			t->ops->drain(t, 4);
			take_events(c, &in);
			take_fuse_answers(device[1]);
		}
	}
	while (t->ops->drain(t, 64) == NF_MORE)
		;
	nf_core_fuse_hold(c, 0);
	take_events(c, &in);
	nf_expire(c, 0, EIO);
	nf_core_stats(c, &stats);
	MUST(stats.pending == 0);
	for (id = 1; id <= 3; id++)
		MUST(nf_object_remove(c, id) == 0);
	nf_core_free(c);
	close(device[0]);
	close(device[1]);
	close(file);
	munmap(mem, len);
	return 0;
}
