/* Parallel decoding and verifying of units: see rafs.h. */

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "base.h"
#include "rafs.h"

#define MAX_THREADS 64

struct batch {
	struct rafs_unit_job *jobs;
	uint32_t n;
	atomic_uint next;
};

struct worker {
	struct batch *batch;
	struct rafs_decoder *decoder;
	pthread_t thread;
};

static void decode(struct rafs_decoder *decoder, struct rafs_unit_job *job)
{
	const struct rafs_unit *unit = &job->blob->units[job->unit];

	job->bad = 0;
	job->error = rafs_unit_decode(decoder, job->blob, job->unit, job->stored, unit->clen,
				      job->out, unit->ulen);
	if (job->error)
		return;
	for (uint32_t i = unit->first; i < unit->first + unit->count; i++)
		if (rafs_chunk_verify(job->blob, i, job->out + job->blob->chunks[i].unit_off))
			job->bad++;
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct batch *batch = worker->batch;
	uint32_t i;

	while ((i = atomic_fetch_add(&batch->next, 1)) < batch->n)
		decode(worker->decoder, &batch->jobs[i]);
	return NULL;
}

int64_t rafs_units_decode(struct rafs_unit_job *jobs, uint32_t n, uint32_t threads)
{
	struct batch batch = { .jobs = jobs, .n = n };
	struct worker workers[MAX_THREADS];
	uint32_t ready = 0, started = 1, i;
	int64_t failed = 0;

	for (i = 0; i < n; i++)
		if (jobs[i].unit >= jobs[i].blob->nunits)
			return -EINVAL;
	if (threads > MAX_THREADS)
		threads = MAX_THREADS;
	if (threads > n)
		threads = n;
	do {
		workers[ready].batch = &batch;
		workers[ready].decoder = rafs_decoder_new();
	} while (workers[ready].decoder && ++ready < threads);
	if (!ready)
		return -ENOMEM;
	/* The caller's own thread works too; one that cannot be started is no error. */
	while (started < ready &&
	       !pthread_create(&workers[started].thread, NULL, work, &workers[started]))
		started++;
	work(&workers[0]);
	for (i = 1; i < started; i++)
		pthread_join(workers[i].thread, NULL);
	for (i = 0; i < ready; i++)
		rafs_decoder_free(workers[i].decoder);
	for (i = 0; i < n; i++)
		failed += jobs[i].error || jobs[i].bad;
	return failed;
}
