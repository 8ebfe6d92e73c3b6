/*
 * A write into a cache file that fails, is short, or is interrupted: what is not written is not
 * announced, its reader waits for the next try or gets an error, and never a hole.
 *
 * Linked with --wrap, so that pwrite does as it is told.
 */
#include "fake.h"

static int script[8], at, calls;	/* 0: as it is; > 0: at most so many bytes; < 0: an errno */

ssize_t __real_pwrite(int fd, const void *data, size_t len, off_t off);
ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t off);

ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t off)
{
	int how = at < 8 ? script[at++] : 0;

	calls++;
	if (how < 0) {
		errno = -how;
		return -1;
	}
	return __real_pwrite(fd, data, how && (size_t)how < len ? (size_t)how : len, off);
}

static void play(int first, int second, int third)
{
	memset(script, 0, sizeof(script));
	script[0] = first;
	script[1] = second;
	script[2] = third;
	at = calls = 0;
}

int main(void)
{
	static uint8_t data[4 * NF_PAGE], back[4 * NF_PAGE];
	struct rig r;
	uint8_t *pages;
	size_t i;
	int fd;

	for (i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7 + 1);
	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, 64 * NF_PAGE, false, &fd);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 1, 1, NF_PAGE, NF_PAGE);
	CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_MISS);

	play(-EIO, 0, 0);
	CHECK(nf_fill_flat(r.core, 1, 0, data, sizeof(data)) == -EIO);
	/* the disk takes a part, then is full: even that part is not announced */
	play(2 * NF_PAGE + 5, -ENOSPC, 0);
	CHECK(nf_fill_flat(r.core, 1, 0, data, sizeof(data)) == -ENOSPC);
	CHECK(pages[0] == 0 && answer_within(&r, SHORT_MS).unique == 0);

	/* interrupted, and in pieces: all of it, once */
	play(-EINTR, 100, 5000);
	CHECK(nf_fill_flat(r.core, 1, 0, data, sizeof(data)) == 0);
	CHECK(calls == 4 && pages[0] == 0x0f);
	CHECK(answer_within(&r, PATIENCE_MS).unique == 1);
	CHECK(pread(fd, back, sizeof(back), 0) == sizeof(back) && !memcmp(back, data, sizeof(data)));

	/* repeated: nothing changes, and nobody is answered twice */
	CHECK(nf_fill_flat(r.core, 1, 0, data, sizeof(data)) == 0);
	CHECK(answer_within(&r, SHORT_MS).unique == 0);

	/* units: those before the one that could not be written are done, and no others */
	{
		struct rafs_chunk chunks[4];
		struct rafs_unit units[4];
		struct rafs_blob blob = { .compressor = 0 };
		uint32_t bad;
		int error, done;

		CHECK(nf_unfill(r.core, 1, 0, 4 * NF_PAGE) == 0);
		CHECK(rafs_identity_map(4 * NF_PAGE, NF_PAGE, chunks, units, &blob) == 0);
		play(0, -ENOSPC, 0);	/* the first unit is written alone, the others together */
		done = nf_fill(r.core, 1, &blob, 0, 4, data, 0, sizeof(data), &error, &bad);
		CHECK(done == 1 && error == -ENOSPC && bad == UINT32_MAX && pages[0] == 1);
	}

	/* late: the object is gone, and with it the right to write by its descriptor's number */
	play(0, 0, 0);
	CHECK(nf_object_remove(r.core, 1) == 0);
	CHECK(nf_fill_flat(r.core, 1, 0, data, sizeof(data)) == -ENOENT);
	CHECK(calls == 0);
	rig_free(&r);
	free(pages);
	return 0;
}
