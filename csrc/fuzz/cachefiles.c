/* Any messages of cachefiles, in any order, between answers, fills and removals. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cachefiles.h"
#include "fuzz_core.h"

#define SLOTS 8u
#define STEPS 64u
#define OP_OPEN 0u

/* As the kernel would, but for what it says; an OPEN's descriptor is one that is there. */
static void send_message(struct input *in, int kernel)
{
	struct nf_message m = { 0 };
	size_t n = take(in, 2) % 1024 + 1, got;
	uint8_t *bytes;
	int fd = -1;

	m.msg_id = (uint32_t)take(in, 1) % 4;
	m.opcode = (uint32_t)take(in, 1) % 4;
	m.object_id = (uint32_t)take(in, 1) % 4;
	m.len = (uint32_t)take(in, 2);
	bytes = take_copy(in, take(in, 1), &got);
	if (got)
		memcpy(m.body, bytes, got);
	free(bytes);
	if (m.opcode == OP_OPEN) {
		fd = dup(kernel);
		memcpy(m.body + 8, &fd, sizeof(fd));
	}
	/* what is too short to say which descriptor it brings is none of the kernel's messages */
	if (m.opcode == OP_OPEN && n < 32)
		n = 32;
	if (send(kernel, &m, n, 0) < 0 && fd >= 0)
		close(fd);
}

static void take_events(struct nf_core *c, struct input *in)
{
	static struct nf_event ev;

	while (nf_core_next(c, &ev, 1, 0)) {
		if (ev.type == NF_EV_OPEN) {
			MUST(ev.volume_len < NF_KEY_MAX && ev.cookie_len <= NF_KEY_MAX && ev.fd >= 0);
			if (take(in, 1) % 2 || nf_object_bind_kernel(c, 1 + (uint32_t)take(in, 1) % 3,
								     ev.kernel_object, ev.fd) < 0)
				close(ev.fd);
		} else if (ev.type == NF_EV_MISS && take(in, 1) % 2) {
			nf_filled(c, ev.object, ev.off, NF_PAGE);
		} else if (ev.type == NF_EV_CLOSE && take(in, 1) % 2) {
			nf_cachefiles_forget(c, ev.kernel_object);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t pages[4][8];
	size_t len = nf_journal_size(SLOTS);
	struct input in = { data, size };
	uint8_t *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct nf_transport *t;
	struct nf_core *c;
	struct nf_stats stats;
	uint32_t id, step;
	int device[2];

	MUST(mem != MAP_FAILED && nf_journal_format(mem, len, SLOTS) == 0);
	c = nf_core_new(mem, len, NF_NO_URING);
	MUST(c);
	t = transport_of(c, &nf_cachefiles);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, device) == 0);
	MUST(nf_core_attach_cachefiles(c, device[0]) == 0);
	memset(pages, 0, sizeof(pages));
	for (id = 1; id <= 3; id++)
		MUST(nf_object_add(c, id, 0, 0, -1, id * 9000, pages[id], 1) == 0);
	for (step = 0; step < STEPS && in.len; step++) {
		switch (take(&in, 1) % 8) {
		case 0:
			nf_cachefiles_copen(c, (uint32_t)take(&in, 1) % 4, (int64_t)take(&in, 8));
			break;
		case 1:
			nf_cachefiles_forget(c, (uint32_t)take(&in, 1) % 4);
			break;
		case 2:
			nf_fail(c, 1 + (uint32_t)take(&in, 1) % 3, take(&in, 8), take(&in, 8), EIO);
			break;
		case 3:
			id = 1 + (uint32_t)take(&in, 1) % 3;
			MUST(nf_object_remove(c, id) == 0);
			MUST(nf_object_add(c, id, 0, 0, -1, id * 9000, pages[id], 1) == 0);
			break;
		case 4:
			nf_unfill(c, 1 + (uint32_t)take(&in, 1) % 3, 0, NF_PAGE);
			break;
		default:
			send_message(&in, device[1]);
			t->ops->drain(t, 4);
			take_events(c, &in);
		}
	}
	while (t->ops->drain(t, 64) == NF_MORE)
		;
	take_events(c, &in);
	nf_expire(c, 0, EIO);
	nf_core_stats(c, &stats);
	MUST(stats.pending == 0);
	for (id = 1; id <= 3; id++)
		MUST(nf_object_remove(c, id) == 0);
	/* closing the device closes what was sent and not read, but not the descriptors it named */
	while (t->ops->drain(t, 64) == NF_MORE)
		;
	take_events(c, &in);
	nf_core_free(c);
	close(device[0]);
	close(device[1]);
	munmap(mem, len);
	return 0;
}
