/* The core stops while questions pour in without end. */
#include "fake.h"

#include <sys/socket.h>
#include <time.h>

static atomic_bool enough;

static void *pour(void *arg)
{
	struct rig *r = arg;
	struct fake_ask a = { 1, 1, 1, 0, 0, NF_PAGE };

	while (!atomic_load(&enough))
		if (send(r->kernel, &a, sizeof(a), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
			usleep(10);
	return NULL;
}

static void *take(void *arg)
{
	struct rig *r = arg;

	while (!atomic_load(&enough))
		answer_within(r, 10);
	return NULL;
}

int main(void)
{
	struct rig r;
	pthread_t threads[3];
	struct timespec begin, end;
	struct nf_stats stats;
	uint8_t *pages;
	int fd, i;

	rig_new(&r, 64, 0);
	pages = rig_object(&r, 1, NF_PAGE, true, &fd);
	CHECK(nf_core_start(r.core) == 0);
	CHECK(pthread_create(&threads[0], NULL, take, &r) == 0);
	for (i = 1; i < 3; i++)
		CHECK(pthread_create(&threads[i], NULL, pour, &r) == 0);
	do {
		usleep(1000);
		nf_core_stats(r.core, &stats);
	} while (stats.events < 2000);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	CHECK(nf_core_stop(r.core) == 0);
	clock_gettime(CLOCK_MONOTONIC, &end);
	CHECK(end.tv_sec - begin.tv_sec < 3);
	/* and starts again */
	CHECK(nf_core_start(r.core) == 0);
	CHECK(nf_core_start(r.core) == -EALREADY);
	CHECK(nf_core_stop(r.core) == 0);	/* while somebody still takes the answers */
	atomic_store(&enough, true);
	for (i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	rig_free(&r);
	free(pages);
	return 0;
}
