/*
 * The fanotify dialect over a socket: each event is answered once, by its number, which is closed
 * only behind the answer; what cannot be told is denied.  With a ring, without, and with one that
 * takes nothing every other time.
 *
 * Linked with --wrap, so that submits fail on demand.
 */
#include "fake.h"

#include <liburing.h>
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define DENY_EIO (FAN_DENY | (uint32_t)EIO << 24)
#define DENY_ENOSPC (FAN_DENY | (uint32_t)ENOSPC << 24)

struct event {
	struct fanotify_event_metadata m;
	uint8_t type, pad;
	uint16_t len;
	uint32_t pad2;
	uint64_t off, count;
};

static bool fails;

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned int n);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned int n);

static bool fail_now(void)
{
	static atomic_uint calls;

	return fails && atomic_fetch_add(&calls, 1) % 2;
}

int __wrap_io_uring_submit(struct io_uring *ring)
{
	return fail_now() ? -EAGAIN : __real_io_uring_submit(ring);
}

int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned int n)
{
	return fail_now() ? -EAGAIN : __real_io_uring_submit_and_wait(ring, n);
}

static struct nf_core *core;
static int kernel, file;

/* A descriptor as an event brings one: the sanitizer of threads knows neither that it was opened
 * nor, when the ring does it, that it was closed. */
static int event_fd(int of)
{
	return (int)syscall(SYS_dup, of);
}

static void tell(int fd, uint8_t type, uint64_t off, uint64_t count, size_t len)
{
	struct event e = { .m = { .event_len = (uint32_t)len, .vers = 3, .metadata_len = 24,
				  .mask = 0x100000, .fd = fd, .pid = 1 },
			   .type = type, .len = 24, .off = off, .count = count };

	CHECK(send(kernel, &e, len, 0) == (ssize_t)len);
}

static uint32_t answer_to(int fd)
{
	struct pollfd p = { kernel, POLLIN, 0 };
	struct fanotify_response r = { 0, 0 };
	int tries;

	CHECK(poll(&p, 1, PATIENCE_MS) == 1);
	CHECK(recv(kernel, &r, sizeof(r), 0) == sizeof(r) && r.fd == fd);
	for (tries = 0; fcntl(fd, F_GETFD) >= 0; tries++) {	/* closed soon after */
		CHECK(tries < PATIENCE_MS);
		usleep(1000);
	}
	return r.response;
}

static bool answered(void)
{
	struct pollfd p = { kernel, POLLIN, 0 };

	return poll(&p, 1, SHORT_MS) > 0;
}

static void run(uint32_t flags)
{
	uint8_t pages[8] = { 0 };
	struct nf_stats stats;
	size_t len = nf_journal_size(8);
	void *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char name[] = "/tmp/nf-test-XXXXXX";
	struct nf_event ev;
	struct stat st;
	int ends[2], fd;
	char one;

	CHECK(mem != MAP_FAILED && nf_journal_format(mem, len, 8) == 0);
	core = nf_core_new(mem, len, flags);
	CHECK(core && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
	kernel = ends[0];
	CHECK(nf_core_attach_fanotify(core, ends[1]) == 0);
	CHECK(nf_core_attach_fanotify(core, ends[1]) == -EBUSY);
	file = mkostemp(name, O_CLOEXEC);
	CHECK(file >= 0 && unlink(name) == 0 && ftruncate(file, 8 * NF_PAGE) == 0);
	CHECK(fstat(file, &st) == 0);
	CHECK(nf_object_add(core, 1, st.st_dev, st.st_ino, file, 8 * NF_PAGE, pages, 0) == 0);
	CHECK(nf_filled(core, 1, 0, NF_PAGE) == 0);
	CHECK(nf_core_start(core) == 0);

	fd = event_fd(file);
	tell(fd, 6, 0, NF_PAGE, 48);
	CHECK(answer_to(fd) == FAN_ALLOW);

	fd = event_fd(file);
	tell(fd, 6, 4 * NF_PAGE, NF_PAGE, 48);
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1 && ev.off == 4 * NF_PAGE && ev.pid == 1);
	CHECK(!answered() && fcntl(fd, F_GETFD) >= 0);
	CHECK(nf_filled(core, 1, 4 * NF_PAGE, NF_PAGE) == 0);
	CHECK(answer_to(fd) == FAN_ALLOW);

	fd = event_fd(file);
	tell(fd, 6, 5 * NF_PAGE, NF_PAGE, 48);
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1);
	CHECK(nf_fail(core, 1, 0, 8 * NF_PAGE, ENOSPC) == 0);
	CHECK(answer_to(fd) == DENY_ENOSPC);

	fd = event_fd(0);			/* not a file that is served */
	tell(fd, 6, 0, NF_PAGE, 48);
	CHECK(answer_to(fd) == DENY_EIO);
	fd = event_fd(file);
	tell(fd, 9, 0, NF_PAGE, 48);		/* another kind of information */
	CHECK(answer_to(fd) == DENY_EIO);
	fd = event_fd(file);
	tell(fd, 6, 0, NF_PAGE, 24);		/* none */
	CHECK(answer_to(fd) == DENY_EIO);
	tell(-1, 0, 0, 0, 24);			/* the queue ran over: nobody waits */
	CHECK(!answered());
	/* many at once, as from many readers */
	for (fd = 0; fd < 200; fd++) {
		int many[4], i;

		for (i = 0; i < 4; i++)
			tell(many[i] = event_fd(file), 6, 0, NF_PAGE, 48);
		for (i = 0; i < 4; i++)
			CHECK(answer_to(many[i]) == FAN_ALLOW);
	}
	/* who has stopped takes nothing more from the kernel */
	CHECK(nf_core_stop(core) == 0);
	fd = event_fd(file);
	tell(fd, 6, 0, NF_PAGE, 48);
	CHECK(!answered() && recv(ends[1], &one, 1, MSG_PEEK | MSG_DONTWAIT) == 1);
	CHECK(nf_core_start(core) == 0);
	CHECK(answer_to(fd) == FAN_ALLOW);
	nf_core_stats(core, &stats);
	CHECK(stats.pending == 0 && stats.oldest_ns == 0);
	nf_core_free(core);
	close(kernel);
	close(ends[1]);
	close(file);
	munmap(mem, len);
}

int main(void)
{
	run(0);
	run(NF_NO_URING);
	fails = true;
	run(0);
	return 0;
}
