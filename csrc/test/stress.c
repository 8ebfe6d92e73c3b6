/* Everything at once, for the sanitizers: ask, fill, fail, expire, trace, mark, remove and add. */
#include "fake.h"

#include <sys/socket.h>

#define OBJECTS 3u
#define PAGES 256u
#define ASKERS 2
#define QUESTIONS 20000u

static struct rig rig;
static uint8_t *pages[OBJECTS + 1];
static int fds[OBJECTS + 1];
static atomic_bool done;
static atomic_uint answered;

static void *asker(void *arg)
{
	unsigned int seed = (unsigned int)(size_t)arg, i;

	for (i = 0; i < QUESTIONS; i++)
		ask(&rig, i + 1, 1 + (uint32_t)rand_r(&seed) % OBJECTS,
		    (uint64_t)(rand_r(&seed) % (int)PAGES) * NF_PAGE,
		    (uint64_t)NF_PAGE << rand_r(&seed) % 3);
	return NULL;
}

static void *taker(void *arg)
{
	(void)arg;
	while (atomic_load(&answered) < ASKERS * QUESTIONS)
		if (answer_within(&rig, 100).unique)
			atomic_fetch_add(&answered, 1);
	atomic_store(&done, true);
	return NULL;
}

static void *dispatcher(void *arg)
{
	static uint8_t data[8 * NF_PAGE];
	struct nf_event *ev = malloc(64 * sizeof(*ev));
	unsigned int seed = 3;
	int n, i;

	(void)arg;
	while (!atomic_load(&done)) {
		n = nf_core_next(rig.core, ev, 64, 20);
		for (i = 0; i < n; i++) {
			uint64_t len = (ev[i].len + NF_PAGE - 1) & ~(uint64_t)(NF_PAGE - 1);

			if (ev[i].type != NF_EV_MISS)
				continue;
			if (rand_r(&seed) % 16 == 0)
				nf_fail(rig.core, ev[i].object, ev[i].off, len, EIO);
			else if (rand_r(&seed) % 16)
				nf_fill_flat(rig.core, ev[i].object, ev[i].off, data, len);
			nf_object_mark(rig.core, ev[i].object, ev[i].off);
		}
	}
	free(ev);
	return NULL;
}

static void *housekeeper(void *arg)
{
	struct nf_trace_entry entries[64];
	struct nf_stats stats;

	(void)arg;
	while (!atomic_load(&done)) {
		nf_expire(rig.core, 20000000, EIO);
		nf_core_stats(rig.core, &stats);
		nf_trace_enable(rig.core, 64);
		nf_trace_read(rig.core, entries, 64);
		nf_fill_trim(rig.core);
		usleep(500);
	}
	return NULL;
}

static void *mover(void *arg)
{
	uint32_t id = 1;

	(void)arg;
	while (!atomic_load(&done)) {
		usleep(2000);
		CHECK(nf_object_remove(rig.core, id) == 0);
		memset(pages[id], 0, PAGES / 8);
		CHECK(nf_object_add(rig.core, id, 0, 0, fds[id], PAGES * NF_PAGE, pages[id], 0) == 0);
		id = id % OBJECTS + 1;
	}
	return NULL;
}

static void run(uint32_t flags)
{
	void *(*const parts[])(void *) = { taker, dispatcher, housekeeper, mover, asker, asker };
	pthread_t threads[6];
	struct nf_stats stats;
	uint32_t id;
	size_t i;

	atomic_store(&done, false);
	atomic_store(&answered, 0);
	rig_new(&rig, 64, flags);
	for (id = 1; id <= OBJECTS; id++)
		pages[id] = rig_object(&rig, id, PAGES * NF_PAGE, false, &fds[id]);
	CHECK(nf_core_start(rig.core) == 0);
	for (i = 0; i < 6; i++)
		CHECK(pthread_create(&threads[i], NULL, parts[i], (void *)(i + 1)) == 0);
	for (i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	/* each exactly once */
	CHECK(answer_within(&rig, SHORT_MS).unique == 0);
	nf_core_stats(rig.core, &stats);
	CHECK(stats.events == ASKERS * QUESTIONS && stats.pending == 0);
	rig_free(&rig);
	for (id = 1; id <= OBJECTS; id++) {
		free(pages[id]);
		close(fds[id]);
	}
}

int main(void)
{
	run(0);
	run(NF_NO_URING);
	return 0;
}
