/* Parallel read, digest and compress for the image builder: see build.h. */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "base.h"
#include "rafs.h"
#include "build.h"

#define MAX_THREADS 64

struct job {
	struct rafs_piece *pieces;
	uint32_t n;
	atomic_uint next;
	const uint8_t *in;
	uint8_t *out;
	uint32_t algo;
	int level;
};

static int read_whole(int fd, uint8_t *to, size_t len, uint64_t off)
{
	while (len) {
		ssize_t got = pread(fd, to, len, (off_t)off);

		if (got < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (!got)
			return -ENODATA;
		to += got;
		off += (uint64_t)got;
		len -= (size_t)got;
	}
	return 0;
}

static void *read_worker(void *arg)
{
	struct job *job = arg;
	uint32_t i;

	while ((i = atomic_fetch_add(&job->next, 1)) < job->n) {
		struct rafs_piece *p = &job->pieces[i];
		uint8_t *to = job->out + p->at;

		p->error = read_whole(p->fd, to, p->len, p->off);
		if (!p->error)
			p->error = rafs_digest(job->algo, to, p->len, p->digest);
		if (!p->error)
			p->crc32c = rafs_crc32c(to, p->len);
	}
	return NULL;
}

/*
 * Compressed size, or 0 when the piece does not shrink.  The target is one
 * byte shorter than the piece: what does not fit there is stored raw anyway,
 * and lz4 and zstd both answer with an error rather than write beyond it.
 */
static int64_t shrink(ZSTD_CCtx *zstd, const struct job *job, const struct rafs_piece *p,
		      uint8_t *bounce, size_t bounce_len)
{
	const uint8_t *from = job->in + p->at;
	int64_t got;

	if (job->algo == RAFS_COMP_NONE)
		return 0;
	if (job->algo == RAFS_COMP_ZSTD) {
		size_t rc = ZSTD_compressCCtx(zstd, job->out + p->at, p->len - 1, from, p->len,
					      job->level);

		return ZSTD_isError(rc) ? 0 : (int64_t)rc;
	}
	got = rafs_compress(job->algo, job->level, from, p->len, bounce, bounce_len);
	if (got < 0)
		return got;
	if (got >= (int64_t)p->len)
		return 0;
	memcpy(job->out + p->at, bounce, (size_t)got);
	return got;
}

static void *store_worker(void *arg)
{
	struct job *job = arg;
	ZSTD_CCtx *zstd = NULL;
	uint8_t *bounce = NULL;
	size_t bounce_len = 0;
	uint32_t i;

	if (job->algo == RAFS_COMP_ZSTD)
		zstd = ZSTD_createCCtx();
	while ((i = atomic_fetch_add(&job->next, 1)) < job->n) {
		struct rafs_piece *p = &job->pieces[i];
		int64_t got;

		if (!p->store)
			continue;
		if (job->algo == RAFS_COMP_ZSTD && !zstd) {
			p->error = -ENOMEM;
			continue;
		}
		if (job->algo == RAFS_COMP_LZ4_BLOCK &&
		    rafs_compress_bound(job->algo, p->len) > bounce_len) {
			free(bounce);
			bounce_len = rafs_compress_bound(job->algo, p->len);
			bounce = malloc(bounce_len);
			if (!bounce) {
				bounce_len = 0;
				p->error = -ENOMEM;
				continue;
			}
		}
		got = shrink(zstd, job, p, bounce, bounce_len);
		if (got < 0) {
			p->error = (int32_t)got;
			continue;
		}
		if (!got) {
			memcpy(job->out + p->at, job->in + p->at, p->len);
			got = p->len;
		}
		p->clen = (uint32_t)got;
	}
	free(bounce);
	ZSTD_freeCCtx(zstd);
	return NULL;
}

static int run(struct job *job, void *(*worker)(void *), uint32_t threads)
{
	pthread_t ids[MAX_THREADS];
	uint32_t started = 0, i;

	if (threads > MAX_THREADS)
		threads = MAX_THREADS;
	/* The caller's own thread works too; one that cannot be started is no error. */
	while (started + 1 < threads && !pthread_create(&ids[started], NULL, worker, job))
		started++;
	worker(job);
	for (i = 0; i < started; i++)
		pthread_join(ids[i], NULL);
	for (i = 0; i < job->n; i++)
		if (job->pieces[i].error)
			return job->pieces[i].error;
	return 0;
}

static int check(struct rafs_piece *pieces, uint32_t n, size_t arena_len)
{
	for (uint32_t i = 0; i < n; i++) {
		if (!pieces[i].len || pieces[i].len > RAFS_MAX_CHUNK_SIZE ||
		    pieces[i].at > arena_len || arena_len - pieces[i].at < pieces[i].len)
			return -EINVAL;
		pieces[i].error = 0;
	}
	return 0;
}

int rafs_build_read(struct rafs_piece *pieces, uint32_t n, uint8_t *arena, size_t arena_len,
		    uint32_t digester, uint32_t threads)
{
	struct job job = { .pieces = pieces, .n = n, .out = arena, .algo = digester };
	int rc = check(pieces, n, arena_len);

	return rc ? rc : run(&job, read_worker, threads);
}

int64_t rafs_build_store(struct rafs_piece *pieces, uint32_t n, const uint8_t *arena,
			 uint8_t *out, size_t arena_len, uint32_t compressor, int level,
			 uint32_t threads)
{
	struct job job = { .pieces = pieces, .n = n, .in = arena, .out = out,
			   .algo = compressor, .level = level };
	int64_t end = 0;
	int rc = check(pieces, n, arena_len);

	if (!rc)
		rc = run(&job, store_worker, threads);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < n; i++) {
		if (!pieces[i].store)
			continue;
		memmove(out + end, out + pieces[i].at, pieces[i].clen);
		end += pieces[i].clen;
	}
	return end;
}
