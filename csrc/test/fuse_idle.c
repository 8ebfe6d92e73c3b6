/*
 * Many mounts, of which one is read: the others are not looked at, with a ring and without; and a
 * core that was stopped serves all of them again.
 *
 * Linked with --wrap, to count looks.
 */
#include <linux/fuse.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "fake.h"

#define MANY 32
#define QUESTIONS 200u

static int devices[MANY], kernels[MANY];
static atomic_uint looks;

ssize_t __real_readv(int fd, const struct iovec *iov, int n);
ssize_t __wrap_readv(int fd, const struct iovec *iov, int n);

ssize_t __wrap_readv(int fd, const struct iovec *iov, int n)
{
	atomic_fetch_add(&looks, 1);
	return __real_readv(fd, iov, n);
}

static void question(int i)
{
	struct fuse_in_header h = { .len = sizeof(h), .opcode = FUSE_GETATTR, .unique = 7, .nodeid = 1 };
	struct pollfd p = { kernels[i], POLLIN, 0 };
	uint8_t answer[512];

	CHECK(send(kernels[i], &h, sizeof(h), 0) == sizeof(h));
	CHECK(poll(&p, 1, PATIENCE_MS) == 1);
	CHECK(recv(kernels[i], answer, sizeof(answer), 0) > (ssize_t)sizeof(struct fuse_out_header));
}

static void run(uint32_t flags)
{
	size_t len = nf_journal_size(64);
	void *journal = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct nf_core *core;
	unsigned int k;
	int i;

	CHECK(journal != MAP_FAILED && nf_journal_format(journal, len, 64) == 0);
	core = nf_core_new(journal, len, flags);
	CHECK(core);
	for (i = 0; i < MANY; i++) {
		int ends[2];

		CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
		kernels[i] = ends[0];
		devices[i] = ends[1];
		CHECK(nf_core_attach_fuse(core, (uint32_t)i + 1, devices[i]) == 0);
	}
	CHECK(nf_core_start(core) == 0);
	for (i = 0; i < MANY; i++)
		question(i);
	atomic_store(&looks, 0);
	for (k = 0; k < QUESTIONS; k++)
		question(MANY / 2);
	/* one that brings it, one that finds no other */
	CHECK(atomic_load(&looks) <= 2 * QUESTIONS + 2);
	CHECK(nf_core_stop(core) == 0);
	CHECK(nf_core_start(core) == 0);
	for (i = 0; i < MANY; i++)
		question(i);
	nf_core_free(core);
	for (i = 0; i < MANY; i++) {
		close(kernels[i]);
		close(devices[i]);
	}
	munmap(journal, len);
}

int main(void)
{
	run(0);
	run(NF_NO_URING);
	return 0;
}
