/* Parallel read, digest, compress and encrypt for the image builder: see writer.h. */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "codec_internal.h"
#include "writer.h"

struct rafs_contexts {
	ZSTD_CCtx *zstd[RAFS_MAX_THREADS];
};

struct rafs_contexts *rafs_contexts_new(void)
{
	return calloc(1, sizeof(struct rafs_contexts));
}

void rafs_contexts_free(struct rafs_contexts *contexts)
{
	if (!contexts)
		return;
	for (uint32_t i = 0; i < RAFS_MAX_THREADS; i++)
		ZSTD_freeCCtx(contexts->zstd[i]);
	free(contexts);
}

struct job {
	void *items;		/* chunks or units */
	uint32_t n;
	atomic_uint next;
	atomic_uint seats;	/* taken: each worker has the context of its own */
	atomic_int error;	/* one of those of the items, or 0 */
	const uint8_t *in;
	uint8_t *out;
	uint32_t digester;
	const char *top;
	const struct rafs_tree *tree;
	const struct rafs_write_options *recipe;
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

#define HOLE_MIN (64u << 10)	/* smaller chunks are read sooner than looked at */

/* The digest of zeros, which large sparse files have many of. */
static struct {
	pthread_mutex_t lock;
	uint32_t digester, len, crc32c;
	uint8_t digest[32];
} zeros = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int digest_zeros(const struct job *job, struct rafs_read_chunk *p, uint8_t *to)
{
	int error = 0;

	pthread_mutex_lock(&zeros.lock);
	if (zeros.len != p->len || zeros.digester != job->digester) {
		memset(to, 0, p->len);
		error = rafs_digest(job->digester, to, p->len, zeros.digest);
		zeros.crc32c = rafs_crc32c(to, p->len);
		zeros.len = error ? 0 : p->len;
		zeros.digester = job->digester;
	}
	memcpy(p->digest, zeros.digest, sizeof(p->digest));
	p->crc32c = zeros.crc32c;
	pthread_mutex_unlock(&zeros.lock);
	return error;
}

/* Is all of it a hole?  What cannot be told is read. */
static int is_hole(int fd, const struct rafs_read_chunk *p)
{
	const off_t start = (off_t)p->off, end = start + p->len;
	off_t data;

	if (p->len < HOLE_MIN)
		return 0;
	data = lseek(fd, start, SEEK_DATA);
	/* Behind the last data there is no more; the hole ends where the file does. */
	if (data < 0)
		return errno == ENXIO && lseek(fd, 0, SEEK_END) >= end;
	return data >= end;
}

/* Its path is put together from its end. */
static int open_row(const struct job *job, uint32_t row)
{
	const struct rafs_tree *t = job->tree;
	const size_t top = strlen(job->top);
	char path[PATH_MAX];
	size_t at = sizeof(path) - 1;
	int fd;

	path[at] = 0;
	for (; t->parent[row] != row; row = t->parent[row]) {
		const uint32_t len = t->name[row + 1] - t->name[row];

		if (len + 1 > at)
			return -ENAMETOOLONG;
		at -= len;
		memcpy(path + at, t->names + t->name[row], len);
		path[--at] = '/';
	}
	if (top > at)
		return -ENAMETOOLONG;
	at -= top;
	memcpy(path + at, job->top, top);
	fd = open(path + at, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int read_one(struct job *job, struct rafs_read_chunk *p)
{
	uint8_t *to = job->out + p->at;
	int fd = p->fd, error = 0;

	p->hole = 0;
	if (fd == RAFS_FD_PATH) {
		fd = open_row(job, p->row);
		if (fd < 0)
			return fd;
	}
	if (fd >= 0)
		p->hole = (uint32_t)is_hole(fd, p);
	if (fd >= 0 && !p->hole)
		error = read_whole(fd, to, p->len, p->off);
	if (p->fd == RAFS_FD_PATH)
		close(fd);
	if (error)
		return error;
	if (p->hole)
		return digest_zeros(job, p, to);
	p->crc32c = rafs_crc32c(to, p->len);
	return rafs_digest(job->digester, to, p->len, p->digest);
}

static void *read_worker(void *arg)
{
	struct job *job = arg;
	uint32_t i;

	while ((i = atomic_fetch_add(&job->next, 1)) < job->n) {
		struct rafs_read_chunk *p = (struct rafs_read_chunk *)job->items + i;

		p->error = read_one(job, p);
		if (p->error)
			atomic_store(&job->error, p->error);
	}
	return NULL;
}

#define PROBES 4u
#define PROBE (8u << 10)
#define PROBED_MIN (256u << 10)

/*
 * Do samples of a large unit shrink by less than a sixty-fourth?  Then it is most likely compressed
 * or encrypted already, and all of it would be gone through for nothing.
 */
static int looks_compressed(ZSTD_CCtx *zstd, int level, const uint8_t *from, uint32_t len,
			    uint8_t *room)
{
	const size_t most = PROBES * PROBE - PROBES * PROBE / 64;

	if (len < PROBED_MIN)
		return 0;
	for (uint32_t i = 0; i < PROBES; i++)
		memcpy(room + i * PROBE, from + (uint64_t)(len - PROBE) * i / (PROBES - 1), PROBE);
	return ZSTD_isError(ZSTD_compressCCtx(zstd, room + PROBES * PROBE, most, room,
					      PROBES * PROBE, level)) != 0;
}

/*
 * Compressed size, or 0 when the unit does not shrink.  The target is one
 * byte shorter than the unit: what does not fit there is stored raw anyway,
 * and zstd answers with an error rather than write beyond it.
 */
static int64_t shrink(ZSTD_CCtx *zstd, const struct job *job, const struct rafs_write_unit *p,
		      uint8_t *bounce, size_t bounce_len)
{
	const struct rafs_write_options *how = job->recipe;
	const uint8_t *from = job->in + p->at;
	int64_t got;

	if (how->compressor == RAFS_COMP_NONE)
		return 0;
	if (how->compressor == RAFS_COMP_ZSTD) {
		size_t rc;

		if (looks_compressed(zstd, how->level, from, p->len, job->out + p->at))
			return 0;
		rc = ZSTD_compressCCtx(zstd, job->out + p->at, p->len - 1, from, p->len,
				       how->level);

		return ZSTD_isError(rc) ? 0 : (int64_t)rc;
	}
	got = rafs_compress(how->compressor, how->level, from, p->len, bounce, bounce_len);
	if (got < 0)
		return got;
	if (got >= (int64_t)p->len)
		return 0;
	memcpy(job->out + p->at, bounce, (size_t)got);
	return got;
}

/* Compress (format.md 3.1), then encrypt, in place at the unit's own room in out. */
static int store(ZSTD_CCtx *zstd, const struct job *job, struct rafs_write_unit *p,
		 uint8_t *bounce, size_t bounce_len)
{
	const struct rafs_write_options *how = job->recipe;
	uint8_t *to = job->out + p->at;
	int64_t got = shrink(zstd, job, p, bounce, bounce_len);

	if (got < 0)
		return (int)got;
	/* What would pass for a padded unit is read back cut: then rather raw. */
	if (how->encrypt && rafs_xts_unpadded(to, (size_t)got) != (size_t)got)
		got = 0;
	/* What is padded to so many bytes must have shrunk by that, or it counts as raw. */
	if (how->encrypt && got < RAFS_BUILD_ROOM && p->len <= RAFS_BUILD_ROOM)
		got = 0;
	p->compressed = got != 0;
	if (!got) {
		memcpy(to, job->in + p->at, p->len);
		got = p->len;
	}
	if (how->encrypt) {
		size_t room = p->len > RAFS_BUILD_ROOM ? p->len : RAFS_BUILD_ROOM;

		if (rafs_xts_unpadded(to, (size_t)got) != (size_t)got)
			return -EILSEQ;
		got = rafs_xts_encrypt(how->key, how->iv, to, (size_t)got, to, room);
		if (got < 0)
			return (int)got;
	}
	p->clen = (uint32_t)got;
	return 0;
}

static void *store_worker(void *arg)
{
	struct job *job = arg;
	const uint32_t compressor = job->recipe->compressor;
	ZSTD_CCtx **zstd = &job->recipe->contexts->zstd[atomic_fetch_add(&job->seats, 1)];
	uint8_t *bounce = NULL;
	size_t bounce_len = 0;
	uint32_t i;

	if (compressor == RAFS_COMP_ZSTD && !*zstd)
		*zstd = ZSTD_createCCtx();
	while ((i = atomic_fetch_add(&job->next, 1)) < job->n) {
		struct rafs_write_unit *p = (struct rafs_write_unit *)job->items + i;
		int error = compressor == RAFS_COMP_ZSTD && !*zstd ? -ENOMEM : 0;

		if (compressor == RAFS_COMP_LZ4_BLOCK &&
		    rafs_compress_bound(compressor, p->len) > bounce_len) {
			free(bounce);
			bounce_len = rafs_compress_bound(compressor, p->len);
			bounce = malloc(bounce_len);
			if (!bounce) {
				bounce_len = 0;
				error = -ENOMEM;
			}
		}
		if (!error)
			error = store(*zstd, job, p, bounce, bounce_len);
		if (error)
			atomic_store(&job->error, error);
	}
	free(bounce);
	return NULL;
}

static int run(struct job *job, void *(*worker)(void *), uint32_t threads)
{
	rafs_in_parallel(worker, job, threads);
	return atomic_load(&job->error);
}

static int fits(uint64_t at, uint32_t len, uint32_t room, size_t arena_len)
{
	if (len > room)
		room = len;
	return len && len <= RAFS_MAX_CHUNK_SIZE && at <= arena_len && arena_len - at >= room;
}

int rafs_build_read(struct rafs_read_chunk *chunks, uint32_t n, const char *top,
		    const struct rafs_tree *tree, uint8_t *arena, size_t arena_len,
		    uint32_t digester, uint32_t threads)
{
	struct job job = {
		.items = chunks, .n = n, .out = arena, .digester = digester, .top = top,
		.tree = tree,
	};

	for (uint32_t i = 0; i < n; i++) {
		if (!fits(chunks[i].at, chunks[i].len, 0, arena_len))
			return -EINVAL;
		chunks[i].error = 0;
	}
	return run(&job, read_worker, threads);
}

int64_t rafs_build_store(struct rafs_write_unit *units, uint32_t n, const uint8_t *arena,
			 uint8_t *out, size_t arena_len, const struct rafs_write_options *recipe)
{
	struct job job = { .items = units, .n = n, .in = arena, .out = out, .recipe = recipe };
	const uint32_t room = recipe->encrypt ? RAFS_BUILD_ROOM : 0;
	int64_t end = 0;
	int rc;

	if (!recipe->contexts)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		if (!fits(units[i].at, units[i].len, room, arena_len))
			return -EINVAL;
	rc = run(&job, store_worker, recipe->threads);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < n; i++) {
		memmove(out + end, out + units[i].at, units[i].clen);
		end += units[i].clen;
	}
	return end;
}

void rafs_build_flush(int fd, uint64_t off)
{
	/* No pipe can, nor need every file system: it is the sync that counts. */
	(void)!sync_file_range(fd, (off64_t)off, 0, SYNC_FILE_RANGE_WRITE);
}
