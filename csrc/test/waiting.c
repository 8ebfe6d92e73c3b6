/*
 * The waiter: any number of descriptors, with a ring and without; nothing is lost when the kernel
 * takes no request (EAGAIN, EBUSY, ENOMEM), whichever submit it is.
 *
 * Linked with --wrap, so that submits fail on demand.
 */
#include "fake.h"

#include <liburing.h>
#include <sys/eventfd.h>

#define MANY 100

static int fails, error;

int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned int n);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned int n);

int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned int n)
{
	if (fails) {
		fails--;
		return -error;
	}
	return __real_io_uring_submit_and_wait(ring, n);
}

static void post(int fd)
{
	uint64_t one = 1;

	CHECK(write(fd, &one, sizeof(one)) == sizeof(one));
}

static void take(int fd)
{
	uint64_t n;

	CHECK(read(fd, &n, sizeof(n)) == sizeof(n));
}

static void many(bool no_uring)
{
	struct nf_waiter *w = nf_waiter_new(no_uring);
	static struct nf_watch watches[MANY];
	bool ready[MANY] = { false };
	int i, round;

	CHECK(w);
	memset(watches, 0, sizeof(watches));
	for (i = 0; i < MANY; i++) {
		watches[i].fd = eventfd(0, EFD_NONBLOCK);
		watches[i].ready = &ready[i];
	}
	for (round = 0; round < 3 * MANY; round++) {
		int which = round * 37 % MANY;

		if (round % 3 == 0) {
			static const int errors[] = { EAGAIN, EBUSY, ENOMEM, EINTR };

			fails = round % 4;
			error = errors[round / 3 % 4];
		}
		for (i = 0; i < MANY; i++)
			nf_waiter_watch(w, &watches[i]);
		if (round % 2)
			post(watches[which].fd);
		else
			CHECK(watches[which].armed);
		nf_waiter_wait(w, 0);
		if (!(round % 2))
			post(watches[which].fd);
		while (!ready[which])
			nf_waiter_wait(w, -1);
		take(watches[which].fd);
		for (i = 0; i < MANY; i++) {
			CHECK(i == which || !ready[i]);
			ready[i] = false;
		}
	}
	nf_waiter_wait(w, 1);		/* with nothing to come, a time-out ends it */
	for (i = 0; i < MANY; i++)
		close(watches[i].fd);
	nf_waiter_free(w);
}

/* The whole loop, whose first submits fail. */
static void served(int first, int code)
{
	struct rig r;
	uint8_t *pages;
	int fd;

	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, NF_PAGE, true, &fd);
	fails = first;
	error = code;
	CHECK(nf_core_start(r.core) == 0);
	for (uint32_t i = 1; i < 200; i++) {
		ask(&r, i, 1, 0, NF_PAGE);
		CHECK(answer_within(&r, PATIENCE_MS).unique == i);
	}
	rig_free(&r);
	free(pages);
	close(fd);
}

int main(void)
{
	many(true);
	many(false);
	for (int first = 0; first < 5; first++)
		served(first, first % 2 ? EAGAIN : ENOMEM);
	return 0;
}
