/*
 * A long fill is done by several threads; its end is that of all of them.  When a part fails, what
 * lies before it is done, and counted.
 *
 * Linked with --wrap, so that writes meet, and fail on demand.
 */
#include "fake.h"

#include <time.h>

#define UNIT (16u * NF_PAGE)
#define UNITS 128u
#define SIZE ((size_t)UNITS * UNIT)

static atomic_bool meet;
static atomic_uint inside, most;
static _Atomic off_t bad_at;

ssize_t __real_pwrite(int fd, const void *data, size_t len, off_t off);
ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t off);

/* The first write is that of the first unit, alone: those behind wait for one another. */
ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t off)
{
	off_t bad = atomic_load(&bad_at);
	int tries;

	if (bad && off <= bad && bad < off + (off_t)len) {
		errno = ENOSPC;
		return -1;
	}
	if (off && atomic_load(&meet)) {
		unsigned int now = atomic_fetch_add(&inside, 1) + 1;

		if (now > atomic_load(&most))
			atomic_store(&most, now);
		for (tries = 0; tries < PATIENCE_MS && atomic_load(&most) < 2; tries++)
			usleep(1000);
		atomic_fetch_sub(&inside, 1);
	}
	return __real_pwrite(fd, data, len, off);
}

static uint32_t units_present(const uint8_t *pages)
{
	uint32_t n = 0;

	while (n < UNITS && pages[n * 2] == 0xff && pages[n * 2 + 1] == 0xff)
		n++;
	return n;
}

int main(void)
{
	static uint8_t data[SIZE], back[SIZE];
	static struct rafs_chunk chunks[UNITS];
	static struct rafs_unit units[UNITS];
	struct rafs_blob blob = { .compressor = 0 };
	int fd, error, done, round;
	uint32_t bad, i;
	uint8_t *pages;
	struct rig r;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2) {
		fprintf(stderr, "one processor\n");
		return 77;
	}
	for (i = 0; i < SIZE; i++)
		data[i] = (uint8_t)(i * 7 + i / UNIT);
	CHECK(rafs_identity_map(SIZE, UNIT, chunks, units, &blob) == 0);
	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, SIZE, false, &fd);

	atomic_store(&meet, true);
	done = nf_fill(r.core, 1, &blob, 0, UNITS, data, 0, SIZE, &error, &bad);
	CHECK(done == UNITS && !error && bad == UINT32_MAX && atomic_load(&most) >= 2);
	CHECK(atomic_load(&inside) == 0 && units_present(pages) == UNITS);
	CHECK(pread(fd, back, SIZE, 0) == (ssize_t)SIZE && !memcmp(back, data, SIZE));
	atomic_store(&meet, false);

	/* wherever it fails: no more is counted than was written, and not much less */
	for (round = 1; round < 40; round++) {
		uint32_t where = (uint32_t)round * 3;

		CHECK(nf_unfill(r.core, 1, 0, SIZE) == 0);
		atomic_store(&bad_at, (off_t)where * UNIT + 5);
		done = nf_fill(r.core, 1, &blob, 0, UNITS, data, 0, SIZE, &error, &bad);
		CHECK(error == -ENOSPC && bad == UINT32_MAX);
		CHECK(done <= (int)where && done > (int)where - 8 && units_present(pages) >= (uint32_t)done);
		CHECK(!(pages[where * 2] & 1));
		atomic_store(&bad_at, 0);
		done = nf_fill(r.core, 1, &blob, (uint32_t)done, UNITS - (uint32_t)done, data, 0, SIZE,
			       &error, &bad);
		CHECK(!error && units_present(pages) == UNITS);
	}
	/* stored bytes that are not all there */
	CHECK(nf_unfill(r.core, 1, 0, SIZE) == 0);
	done = nf_fill(r.core, 1, &blob, 0, UNITS, data, 0, SIZE - 1, &error, &bad);
	CHECK(done == UNITS - 1 && error == -EINVAL);
	CHECK(nf_fill(r.core, 1, &blob, 0, UNITS + 1, data, 0, SIZE, &error, &bad) == 0 && error == -EINVAL);
	CHECK(nf_fill(r.core, 2, &blob, 0, 1, data, 0, SIZE, &error, &bad) == 0 && error == -ENOENT);
	nf_fill_trim(r.core);
	rig_free(&r);
	free(pages);
	close(fd);
	return 0;
}
