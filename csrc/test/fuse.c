/* The fuse dialect over a socket pair: every message is answered once, READs with the bytes; a
 * successor answers what is on record; what ends leaves nothing behind. */
#include <linux/fuse.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "fake.h"

#define SLOTS 8u
#define SIZE (3 * NF_PAGE + 100)
#define CONNECTION 5u

struct answer {
	struct fuse_out_header h;
	uint8_t data[8 * NF_PAGE];
};

static int kernel, device, file;
static uint8_t *journal, pages[8];
static size_t journal_len;
static struct nf_core *core;
static uint64_t unique;

static void start(bool again)
{
	if (again)
		nf_core_free(core);
	core = nf_core_new(journal, journal_len, 0);
	CHECK(core);
	CHECK(nf_core_attach_fuse(core, CONNECTION, device) == 0);
}

static uint64_t ask_fuse(uint32_t opcode, uint64_t node, const void *body, size_t len)
{
	uint8_t message[512] = { 0 };
	struct fuse_in_header h = { .len = (uint32_t)(sizeof(h) + len), .opcode = opcode,
				    .unique = ++unique, .nodeid = node, .pid = 77 };

	memcpy(message, &h, sizeof(h));
	if (len)
		memcpy(message + sizeof(h), body, len);
	CHECK(send(kernel, message, h.len, 0) == (ssize_t)h.len);
	return h.unique;
}

static uint64_t ask_read(uint64_t node, uint64_t off, uint32_t size)
{
	struct fuse_read_in in = { .offset = off, .size = size };

	return ask_fuse(FUSE_READ, node, &in, sizeof(in));
}

/* The answer's length without its header, or a negative errno. */
static long answered(struct answer *a, uint64_t to)
{
	struct pollfd p = { kernel, POLLIN, 0 };
	ssize_t n;

	CHECK(poll(&p, 1, PATIENCE_MS) == 1);
	n = recv(kernel, a, sizeof(*a), 0);
	CHECK(n >= (ssize_t)sizeof(a->h) && a->h.len == n && a->h.unique == to);
	return a->h.error ? a->h.error : (long)(n - (ssize_t)sizeof(a->h));
}

static void check_silence(void)
{
	struct pollfd p = { kernel, POLLIN, 0 };

	CHECK(poll(&p, 1, SHORT_MS) == 0);
}

static void messages(struct answer *a)
{
	struct fuse_init_in init = { .major = 7, .minor = 45, .max_readahead = 131072, .flags = ~0u };
	const struct fuse_init_out *out = (const void *)a->data;
	const struct fuse_entry_out *entry = (const void *)a->data;
	const struct fuse_attr_out *attr = (const void *)a->data;

	CHECK(answered(a, ask_fuse(FUSE_INIT, 0, &init, sizeof(init))) == (long)sizeof(*out));
	CHECK(out->major == 7 && out->minor == 31 && out->max_pages == 256 && out->max_write == 4096);
	CHECK(!(out->flags & ~(uint32_t)(FUSE_ASYNC_READ | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS)));
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 1, "9", 2)) == (long)sizeof(*entry));
	CHECK(entry->nodeid == 10 && entry->attr.size == 4 * NF_PAGE && entry->attr.mode == 0100400);
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 1, "8", 2)) == -ENOENT);
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 1, "09", 3)) == -ENOENT);
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 1, "9x", 3)) == -ENOENT);
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 1, "9", 1)) == -ENOENT);	/* without its end */
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 10, "9", 2)) == -ENOENT);
	CHECK(answered(a, ask_fuse(FUSE_GETATTR, 1, NULL, 0)) == (long)sizeof(*attr));
	CHECK(attr->attr.mode == 040500);
	CHECK(answered(a, ask_fuse(FUSE_GETATTR, 77, NULL, 0)) == -EIO);
	CHECK(answered(a, ask_fuse(FUSE_OPEN, 10, NULL, 0)) == -ENOSYS);
	CHECK(answered(a, ask_fuse(FUSE_RELEASE, 10, NULL, 0)) == 0);
	CHECK(answered(a, ask_fuse(4711, 10, NULL, 0)) == -ENOSYS);
	ask_fuse(FUSE_FORGET, 10, NULL, 0);
	ask_fuse(FUSE_INTERRUPT, 0, NULL, 0);
	check_silence();
}

static void reads(struct answer *a)
{
	uint64_t first, second;
	struct nf_event ev;
	uint32_t i;

	CHECK(answered(a, ask_read(10, 0, NF_PAGE)) == NF_PAGE && a->data[5] == 'x');
	CHECK(answered(a, ask_read(11, 0, NF_PAGE)) == -EIO);
	CHECK(answered(a, ask_read(10, 8 * NF_PAGE, NF_PAGE)) == 0);
	CHECK(answered(a, ask_read(10, 0, 1u << 30)) == -EIO);
	CHECK(answered(a, ask_read(10, UINT64_MAX - 10, NF_PAGE)) == -EIO);
	CHECK(answered(a, ask_fuse(FUSE_READ, 10, "short", 5)) == -EIO);

	/* not there: it waits, and the last page is whole */
	first = ask_read(10, 2 * NF_PAGE, 2 * NF_PAGE);
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1 && ev.type == NF_EV_MISS && ev.pid == 77);
	check_silence();
	CHECK(nf_filled(core, 9, 2 * NF_PAGE, NF_PAGE + 100) == 0);
	CHECK(answered(a, first) == 2 * NF_PAGE && a->data[NF_PAGE + 99] == 'x');
	CHECK(!a->data[NF_PAGE + 100] && !a->data[2 * NF_PAGE - 1]);

	/* more than there are records: those that are behind come when there is room */
	for (i = 0; i < SLOTS + 4; i++) {
		first = ask_read(10, NF_PAGE, NF_PAGE);
		if (!i)
			second = first;
	}
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1);
	CHECK(nf_fail(core, 9, 0, UINT64_MAX, ENOSPC) == 0);
	for (i = 0; i < SLOTS + 4; i++) {
		struct pollfd p = { kernel, POLLIN, 0 };

		while (!poll(&p, 1, SHORT_MS))
			nf_fail(core, 9, 0, UINT64_MAX, ENOSPC);
		CHECK(recv(kernel, a, sizeof(*a), 0) == (ssize_t)sizeof(a->h));
		CHECK(a->h.error == -ENOSPC || a->h.error == -EIO);
		CHECK(a->h.unique >= second && a->h.unique <= first);
	}
	while (nf_core_next(core, &ev, 1, 0))
		;
}

static void take_over(struct answer *a)
{
	uint64_t waits, unknown;
	struct nf_event ev;

	waits = ask_read(10, NF_PAGE, NF_PAGE);
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1);
	nf_core_stop(core);
	start(true);
	CHECK(nf_core_fuse_hold(core, 1) == 0);
	CHECK(nf_core_settle(core, 1) == 1);
	CHECK(nf_core_start(core) == 0);
	unknown = ask_read(20, 0, NF_PAGE);
	check_silence();
	CHECK(nf_object_add(core, 9, 0, 0, file, SIZE, pages, 0) == 0);
	CHECK(nf_core_fuse_look_again(core) == 0);
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1 && ev.object == 9 && ev.off == NF_PAGE);
	CHECK(nf_filled(core, 9, NF_PAGE, NF_PAGE) == 0);
	CHECK(answered(a, waits) == NF_PAGE && a->data[0] == 'x');
	check_silence();
	CHECK(nf_core_fuse_hold(core, 0) == 0);
	CHECK(answered(a, unknown) == -EIO);
	CHECK(answered(a, ask_read(20, 0, NF_PAGE)) == -EIO);
}

/* One file of all objects: what it shows comes later, and zeros lie between them. */
static void flat(struct answer *a)
{
	static const uint32_t objects[2] = { 9, 9 };
	static const uint64_t starts[2] = { 0, 6 * NF_PAGE };
	const struct fuse_entry_out *entry = (const void *)a->data;
	struct nf_event ev;
	uint64_t waits;

	CHECK(nf_filled(core, 9, 0, SIZE) == 0);
	CHECK(nf_core_detach_fuse(core, CONNECTION) == 0);
	CHECK(nf_core_fuse_hold(core, 1) == 0);
	CHECK(nf_core_attach_fuse_flat(core, CONNECTION, device, NULL, NULL, 0) == 0);
	waits = ask_fuse(FUSE_LOOKUP, 1, "flat", 5);
	check_silence();
	CHECK(nf_core_attach_fuse_flat(core, CONNECTION, -1, objects, starts, 2) == 0);
	CHECK(nf_core_fuse_look_again(core) == 0);
	CHECK(answered(a, waits) == (long)sizeof(*entry));
	CHECK(entry->nodeid == 2 && entry->attr.size == 10 * NF_PAGE && entry->attr.mode == 0100400);
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 1, "flat", 4)) == -ENOENT);
	CHECK(answered(a, ask_fuse(FUSE_LOOKUP, 1, "9", 2)) == -ENOENT);
	CHECK(answered(a, ask_fuse(FUSE_GETATTR, 3, NULL, 0)) == -EIO);
	CHECK(answered(a, ask_read(10, 0, NF_PAGE)) == -EIO);
	CHECK(answered(a, ask_read(2, 3 * NF_PAGE, 4 * NF_PAGE)) == 4 * NF_PAGE);
	CHECK(a->data[99] == 'x' && !a->data[100] && !a->data[3 * NF_PAGE - 1]);
	CHECK(a->data[3 * NF_PAGE] == 'x' && a->data[4 * NF_PAGE - 1] == 'x');
	CHECK(answered(a, ask_read(2, 9 * NF_PAGE, 4 * NF_PAGE)) == NF_PAGE);
	CHECK(answered(a, ask_read(2, 10 * NF_PAGE, NF_PAGE)) == 0);
	CHECK(answered(a, ask_read(2, 4 * NF_PAGE, 2 * NF_PAGE)) == 2 * NF_PAGE && !a->data[0]);

	CHECK(nf_unfill(core, 9, 0, NF_PAGE) == 0);
	waits = ask_read(2, 4 * NF_PAGE, 3 * NF_PAGE);
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1 && ev.object == 9 && !ev.off);
	check_silence();
	CHECK(nf_filled(core, 9, 0, NF_PAGE) == 0);
	CHECK(answered(a, waits) == 3 * NF_PAGE && !a->data[0] && a->data[2 * NF_PAGE] == 'x');
	CHECK(nf_core_fuse_hold(core, 0) == 0);
	CHECK(nf_core_detach_fuse(core, CONNECTION) == 0);
	CHECK(nf_core_attach_fuse(core, CONNECTION, device) == 0);
}

static void ends(void)
{
	struct nf_stats stats;
	struct nf_event ev;

	CHECK(nf_unfill(core, 9, 0, NF_PAGE) == 0);
	ask_read(10, 0, NF_PAGE);
	CHECK(nf_core_next(core, &ev, 1, PATIENCE_MS) == 1);
	CHECK(nf_core_detach_fuse(core, CONNECTION) == 0);
	CHECK(nf_core_detach_fuse(core, CONNECTION) == -ENOENT);
	/* the same number is another connection now: what the old one asked is not answered to it */
	CHECK(nf_core_attach_fuse(core, CONNECTION, device) == 0);
	CHECK(nf_core_attach_fuse(core, CONNECTION, device) == -EEXIST);
	CHECK(nf_filled(core, 9, 0, NF_PAGE) == 0);
	check_silence();
	nf_core_stats(core, &stats);
	CHECK(stats.pending == 0);
	close(kernel);	/* the loop sees the end, and does not spin over it */
	usleep(SHORT_MS * 1000);
	nf_core_stats(core, &stats);
	CHECK(stats.wakeups < 1000);
}

int main(void)
{
	static struct answer a;
	char name[] = "/tmp/nf-test-XXXXXX";
	static uint8_t content[SIZE];
	int ends_of[2];

	journal_len = nf_journal_size(SLOTS);
	journal = mmap(NULL, journal_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(journal != MAP_FAILED && nf_journal_format(journal, journal_len, SLOTS) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends_of) == 0);
	kernel = ends_of[0];
	device = ends_of[1];
	file = mkostemp(name, O_CLOEXEC);
	memset(content, 'x', sizeof(content));
	CHECK(file >= 0 && unlink(name) == 0 && write(file, content, SIZE) == SIZE);
	start(false);
	CHECK(nf_object_add(core, 9, 0, 0, file, SIZE, pages, 0) == 0);
	CHECK(nf_filled(core, 9, 0, NF_PAGE) == 0);
	CHECK(nf_core_start(core) == 0);
	messages(&a);
	reads(&a);
	take_over(&a);
	flat(&a);
	ends();
	nf_core_free(core);
	close(device);
	close(file);
	munmap(journal, journal_len);
	return 0;
}
