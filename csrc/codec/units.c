/* Parallel decoding and verifying of units: see rafs.h. */

#include <stdatomic.h>
#include <stddef.h>

#include "codec_internal.h"

struct batch {
	struct rafs_unit_job *jobs;
	uint32_t n;
	atomic_uint next;
	atomic_uint seats;	/* taken: each worker has the decoder of its own */
	struct rafs_decoder *decoders[RAFS_MAX_THREADS];
};

static void decode(struct rafs_decoder *decoder, struct rafs_unit_job *job)
{
	const struct rafs_unit *unit = &job->blob->units[job->unit];

	job->bad = 0;
	job->error = rafs_unit_decode(decoder, job->blob, job->unit, job->compressed, unit->clen,
				      job->out, unit->ulen);
	if (job->error)
		return;
	for (uint32_t i = unit->first; i < unit->first + unit->count; i++)
		if (rafs_chunk_verify(job->blob, i, job->out + job->blob->chunks[i].unit_off))
			job->bad++;
}

static void *work(void *arg)
{
	struct batch *batch = arg;
	struct rafs_decoder *decoder = batch->decoders[atomic_fetch_add(&batch->seats, 1)];
	uint32_t i;

	while ((i = atomic_fetch_add(&batch->next, 1)) < batch->n)
		decode(decoder, &batch->jobs[i]);
	return NULL;
}

int64_t rafs_units_decode(struct rafs_unit_job *jobs, uint32_t n, uint32_t threads)
{
	struct batch batch = { .jobs = jobs, .n = n };
	uint32_t ready = 0, i;
	int64_t failed = 0;

	for (i = 0; i < n; i++)
		if (jobs[i].unit >= jobs[i].blob->nunits)
			return -EINVAL;
	if (threads > RAFS_MAX_THREADS)
		threads = RAFS_MAX_THREADS;
	if (threads > n)
		threads = n;
	do {
		batch.decoders[ready] = rafs_decoder_new();
	} while (batch.decoders[ready] && ++ready < threads);
	if (!ready)
		return -ENOMEM;
	rafs_in_parallel(work, &batch, ready);
	for (i = 0; i < ready; i++)
		rafs_decoder_free(batch.decoders[i]);
	for (i = 0; i < n; i++)
		failed += jobs[i].error || jobs[i].bad;
	return failed;
}
