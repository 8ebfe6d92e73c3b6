/*
 * An object is removed while a fill writes into its file: the removal waits for the fill, so
 * the number of the descriptor is not given up while it is written by.
 *
 * Linked with --wrap: pwrite stops in the middle until it is let on.
 */
#include "fake.h"

#include <semaphore.h>

static sem_t inside, go;
static atomic_bool removed;

ssize_t __real_pwrite(int fd, const void *data, size_t len, off_t off);
ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t off);

ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t off)
{
	sem_post(&inside);
	sem_wait(&go);
	CHECK(!atomic_load(&removed));
	return __real_pwrite(fd, data, len, off);
}

static void *fill(void *arg)
{
	static const uint8_t data[NF_PAGE];
	struct rig *r = arg;

	CHECK(nf_fill_flat(r->core, 1, 0, data, sizeof(data)) == 0);
	return NULL;
}

static void *remove_it(void *arg)
{
	struct rig *r = arg;

	CHECK(nf_object_remove(r->core, 1) == 0);
	atomic_store(&removed, true);
	return NULL;
}

int main(void)
{
	pthread_t filler, remover;
	struct fake_answer a;
	struct rig r;
	uint8_t *pages;
	int fd;

	sem_init(&inside, 0, 0);
	sem_init(&go, 0, 0);
	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, 4 * NF_PAGE, false, &fd);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 1, 1, 0, NF_PAGE);
	CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_MISS);
	CHECK(pthread_create(&filler, NULL, fill, &r) == 0);
	sem_wait(&inside);
	CHECK(pthread_create(&remover, NULL, remove_it, &r) == 0);
	/* who waits is told at once, and not by the fill */
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 1 && a.err == EIO);
	usleep(SHORT_MS * 1000);
	CHECK(!atomic_load(&removed));
	sem_post(&go);
	pthread_join(filler, NULL);
	pthread_join(remover, NULL);
	CHECK(atomic_load(&removed) && answer_within(&r, SHORT_MS).unique == 0);
	rig_free(&r);
	free(pages);
	return 0;
}
