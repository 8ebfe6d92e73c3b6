/*
 * The cachefiles dialect over a socket: OPEN, READ and CLOSE are on record until they are answered,
 * each record is given up with its own answer, and a READ of an unknown object is told.
 *
 * Linked with --wrap: what READ_COMPLETE was called for is noted.
 */
#include "fake.h"

#include <poll.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "cachefiles.h"

static _Atomic unsigned long completed;	/* message ids, each in the next lower byte */

int __wrap_ioctl(int fd, unsigned long request, ...);

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	unsigned long id;
	va_list ap;

	va_start(ap, request);
	id = va_arg(ap, unsigned long);
	va_end(ap);
	CHECK(fd >= 0 && request == 0x40049801);
	atomic_store(&completed, atomic_load(&completed) << 8 | id);
	errno = EINVAL;		/* the reader was killed: no matter */
	return -1;
}

static int kernel;

static void tell(uint32_t msg_id, uint32_t opcode, uint32_t object, const void *body, size_t len)
{
	struct nf_message m = { .msg_id = msg_id, .opcode = opcode, .len = (uint32_t)len + 16,
				.object_id = object };

	memcpy(m.body, body, len);
	CHECK(send(kernel, &m, len + 16, 0) == (ssize_t)len + 16);
}

static void expect(const char *text)
{
	struct pollfd p = { kernel, POLLIN, 0 };
	char said[64] = "";

	CHECK(poll(&p, 1, PATIENCE_MS) == 1 && recv(kernel, said, sizeof(said) - 1, 0) > 0);
	CHECK(!strcmp(said, text));
}

static uint32_t on_record(const struct nf_core *c)
{
	return atomic_load(&c->transports[1]->in_use);
}

int main(void)
{
	struct {
		uint32_t volume, cookie, fd, flags;
		char keys[8];
	} open_body = { 4, 3, (uint32_t)dup(0), 0, "vol\0abc" };
	static const struct { uint64_t off, len; } read_body = { NF_PAGE, NF_PAGE };
	static uint8_t pages[8];
	size_t len = nf_journal_size(8);
	void *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct nf_core *c;
	struct nf_event ev;
	uint32_t cursor = 0;
	int ends[2], tries;

	CHECK(mem != MAP_FAILED && nf_journal_format(mem, len, 8) == 0);
	c = nf_core_new(mem, len, 0);
	CHECK(c && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
	kernel = ends[0];
	CHECK(nf_cachefiles_copen(c, 1, 0) == -EBADF);
	CHECK(nf_core_attach_cachefiles(c, ends[1]) == 0 && nf_core_start(c) == 0);

	tell(3, 0, 9, &open_body, 23);
	CHECK(nf_core_next(c, &ev, 1, PATIENCE_MS) == 1 && ev.type == NF_EV_OPEN && ev.msg_id == 3);
	CHECK(ev.volume_len == 3 && !memcmp(ev.volume, "vol", 3) && !memcmp(ev.cookie, "abc", 3));
	CHECK(on_record(c) == 1);
	CHECK(nf_object_add(c, 1, 0, 0, -1, 8 * NF_PAGE, pages, 1) == 0);
	CHECK(nf_object_bind_kernel(c, 1, 9, ev.fd) == 0);
	CHECK(nf_cachefiles_copen(c, 3, 8 * NF_PAGE) == 0);
	expect("copen 3,32768");
	CHECK(on_record(c) == 0);
	CHECK(nf_cachefiles_inherited(c, NF_INHERITED_OBJECTS, &cursor, &ev) == 1);
	CHECK(ev.kernel_object == 9 && ev.cookie_len == 3);

	tell(5, 2, 9, &read_body, sizeof(read_body));
	CHECK(nf_core_next(c, &ev, 1, PATIENCE_MS) == 1 && ev.type == NF_EV_MISS && ev.object == 1);
	CHECK(!atomic_load(&completed) && on_record(c) == 1);
	CHECK(nf_filled(c, 1, NF_PAGE, NF_PAGE) == 0);
	CHECK(atomic_load(&completed) == 5 && on_record(c) == 0);

	tell(6, 2, 8, &read_body, sizeof(read_body));	/* of an object that is not known */
	CHECK(nf_core_next(c, &ev, 1, PATIENCE_MS) == 1 && ev.type == NF_EV_LOST);
	tell(7, 2, 9, "", 0);				/* cut short */
	for (tries = 0; atomic_load(&completed) != (5 << 8 | 7); tries++) {
		CHECK(tries < PATIENCE_MS);
		usleep(1000);
	}

	tell(8, 1, 9, "", 0);
	CHECK(nf_core_next(c, &ev, 1, PATIENCE_MS) == 1 && ev.type == NF_EV_CLOSE && ev.object == 1);
	CHECK(on_record(c) == 1);
	nf_cachefiles_forget(c, 9);
	CHECK(on_record(c) == 0);
	cursor = 0;
	CHECK(nf_cachefiles_inherited(c, NF_INHERITED_OBJECTS, &cursor, &ev) == 0);

	/* keys that do not fit are refused, and their descriptor is closed */
	open_body.fd = (uint32_t)dup(0);
	open_body.cookie = 4000;
	tell(4, 0, 2, &open_body, 23);
	expect("copen 4,-22");
	for (tries = 0; fcntl((int)open_body.fd, F_GETFD) >= 0; tries++) {
		CHECK(tries < PATIENCE_MS);
		usleep(1000);
	}
	nf_core_free(c);
	return 0;
}
