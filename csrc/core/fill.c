/*
 * Filling: decode, verify, write, mark present, answer; without the GIL, from
 * any number of threads.
 *
 * Chunks that lie next to each other in the flat file are gathered and written
 * by one call; a gathered piece is at most STAGE bytes (or one chunk), so that
 * the reader of the first is not kept waiting for the last.
 */
#include "fill.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STAGE (256u * 1024u)
#define MAX_FILLERS 16u
#define BACKING_PAUSE_US 20000
#define BACKING_PAUSES 250u	/* 5 s */

/*
 * What one fill works with.  A core has one more than there are processors,
 * whatever number of threads receive, so that memory follows what can be
 * decoded at once and not how many requests are under way.
 */
struct nf_filler {
	struct rafs_decoder *decoder;	/* NULL until a fill has something to decode */
	uint8_t *stage;			/* page-aligned, as unit; both grow on demand */
	size_t stage_cap;
	uint8_t *unit;
	size_t unit_cap;
	struct nf_filler *next;
};

static void free_filler(struct nf_filler *f)
{
	rafs_decoder_free(f->decoder);
	free(f->stage);
	free(f->unit);
	free(f);
}

static uint32_t most_fillers(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN) + 1;

	return n < 2 ? 2 : n > (long)MAX_FILLERS ? MAX_FILLERS : (uint32_t)n;
}

void nf_fillers_init(struct nf_fillers *f, struct nf_requests *core)
{
	f->core = core;
	f->most = most_fillers();
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->came_free, NULL);
}

void nf_fillers_destroy(struct nf_fillers *f)
{
	nf_fillers_trim(f);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->came_free);
}

/* A free one, or a new one, or the next that comes free; NULL when there is no memory. */
static struct nf_filler *take_filler(struct nf_fillers *all)
{
	struct nf_filler *f;

	pthread_mutex_lock(&all->lock);
	while (!all->free && all->n >= all->most)
		pthread_cond_wait(&all->came_free, &all->lock);
	f = all->free;
	if (f) {
		all->free = f->next;
	} else {
		f = calloc(1, sizeof(*f));
		all->n += f != NULL;
	}
	pthread_mutex_unlock(&all->lock);
	return f;
}

static void give_back(struct nf_fillers *all, struct nf_filler *f)
{
	pthread_mutex_lock(&all->lock);
	f->next = all->free;
	all->free = f;
	pthread_cond_signal(&all->came_free);
	pthread_mutex_unlock(&all->lock);
}

void nf_fillers_trim(struct nf_fillers *all)
{
	struct nf_filler *f, *next;

	pthread_mutex_lock(&all->lock);
	f = all->free;
	all->free = NULL;
	for (; f; f = next) {
		next = f->next;
		free_filler(f);
		all->n--;
	}
	pthread_mutex_unlock(&all->lock);
}

static int reserve(uint8_t **buf, size_t *cap, size_t len)
{
	void *p;

	if (*cap >= len)
		return 0;
	len = (len + NF_PAGE - 1) & ~(size_t)(NF_PAGE - 1);
	if (posix_memalign(&p, NF_PAGE, len))
		return -ENOMEM;
	free(*buf);
	*buf = p;
	*cap = len;
	return 0;
}

static int write_all(int fd, const uint8_t *data, size_t len, uint64_t off)
{
	uint32_t pauses = 0;
	bool has_file = false;

	while (len) {
		ssize_t n = pwrite(fd, data, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		/* cachefiles: the disk is too full for the kernel (its bstop), or the
		 * backing file, which comes only some time after copen, was not there yet:
		 * it may have come since, so only a write behind that look can tell */
		if (n < 0 && errno == ENOBUFS) {
			if (has_file)
				return -ENOSPC;
			has_file = lseek(fd, 0, SEEK_DATA) >= 0 || errno != ENOBUFS;
			if (has_file)
				continue;
			if (pauses++ < BACKING_PAUSES) {
				usleep(BACKING_PAUSE_US);
				continue;
			}
			return -ENOBUFS;
		}
		if (n <= 0)
			return n ? -errno : -EIO;
		data += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/* Write [off, off + len) of the flat file, whole pages, and let its readers go. */
static int publish(struct nf_requests *rs, struct nf_object *o, const uint8_t *data, uint64_t off,
		   size_t len)
{
	size_t n = len;
	int rc;

	if (!o->aligned && off + n > o->size)
		n = o->size - off;
	rc = write_all(o->fill_fd, data, n, off);
	if (rc)
		return rc;
	nf_object_set_present(o, off, len);
	nf_requests_satisfied(rs, o);
	return 0;
}

/* What is gathered and not yet written. */
struct stage {
	struct nf_requests *rs;
	struct nf_object *o;
	struct nf_filler *f;
	uint64_t off;
	size_t len;
	uint32_t done;		/* units whose last chunk is gathered or written */
	uint32_t written;	/* units whose last chunk is written */
	int error;		/* of a write: nothing after it counts as written */
};

static int flush(struct stage *s)
{
	int rc = s->len ? publish(s->rs, s->o, s->f->stage, s->off, s->len) : 0;

	s->len = 0;
	if (rc)
		s->error = rc;
	if (!s->error)
		s->written = s->done;
	return s->error;
}

/* Room in the stage for a chunk at its flat offset; zeros behind its data are in place. */
static int place(struct stage *s, uint64_t uoff, uint32_t usize, uint8_t **where)
{
	size_t padded = ((size_t)usize + NF_PAGE - 1) & ~(size_t)(NF_PAGE - 1);
	int rc;

	if (uoff % NF_PAGE || uoff >= s->o->size || usize > s->o->size - uoff)
		return -EBADMSG;
	if (s->len && (uoff != s->off + s->len || s->len + padded > STAGE)) {
		rc = flush(s);
		if (rc)
			return rc;
	}
	rc = reserve(&s->f->stage, &s->f->stage_cap, padded > STAGE ? padded : STAGE);
	if (rc)
		return rc;
	if (!s->len)
		s->off = uoff;
	*where = s->f->stage + s->len;
	memset(*where + usize, 0, padded - usize);
	return 0;
}

static void placed(struct stage *s, uint32_t usize)
{
	s->len += ((size_t)usize + NF_PAGE - 1) & ~(size_t)(NF_PAGE - 1);
}

static int fill_unit(struct stage *s, const struct rafs_blob *blob, uint32_t unit,
		     const uint8_t *stored, uint32_t *bad_chunk)
{
	const struct rafs_unit *u = &blob->units[unit];
	const struct rafs_chunk *k = &blob->chunks[u->first];
	uint8_t *where, *plain;
	uint32_t i;
	int rc, bad = 0;

	*bad_chunk = u->first;
	if (u->count == 1 && k->unit_off == 0 && k->usize == u->ulen) {
		rc = place(s, k->uoff, k->usize, &where);
		if (!rc)
			rc = rafs_unit_decode(s->f->decoder, blob, unit, stored, u->clen, where, u->ulen);
		if (rc >= 0)
			rc = rafs_chunk_verify(blob, u->first, where);
		if (rc < 0)
			return rc;
		placed(s, k->usize);
		return 0;
	}
	rc = reserve(&s->f->unit, &s->f->unit_cap, u->ulen);
	if (rc)
		return rc;
	plain = s->f->unit;
	rc = rafs_unit_decode(s->f->decoder, blob, unit, stored, u->clen, plain, u->ulen);
	if (rc < 0)
		return rc;
	/* A bad chunk is its own readers' error: the others of a batch are right, and are written. */
	for (i = 0; i < u->count; i++, k++) {
		if (k->unit_off > u->ulen || k->usize > u->ulen - k->unit_off)
			rc = -EBADMSG;
		else
			rc = rafs_chunk_verify(blob, u->first + i, plain + k->unit_off);
		if (rc) {
			if (!bad)
				*bad_chunk = u->first + i;
			bad = bad ? bad : rc;
			continue;
		}
		rc = place(s, k->uoff, k->usize, &where);
		if (rc)
			return rc;
		memcpy(where, plain + k->unit_off, k->usize);
		placed(s, k->usize);
	}
	return bad;
}

/* Units [unit, unit + n) into an object that is there; see nf_fill. */
static int fill_all(struct stage *s, const struct rafs_blob *blob, uint32_t unit, uint32_t n,
		      const uint8_t *stored, uint64_t stored_off, uint64_t stored_len,
		      int *error, uint32_t *bad_chunk)
{
	uint32_t i, suspect = UINT32_MAX;
	int rc = 0, late;

	for (i = 0; i < n && !rc; i++) {
		const struct rafs_unit *u = &blob->units[unit + i];
		uint64_t at = u->coff - stored_off;

		if (u->coff < stored_off || at > stored_len || u->clen > stored_len - at) {
			rc = -EINVAL;
			break;
		}
		rc = fill_unit(s, blob, unit + i, stored + at, &suspect);
		if (!rc)
			s->done = i + 1;
		/* the first was asked for: its reader does not wait for the others */
		if (!rc && i == 0)
			rc = flush(s);
	}
	late = flush(s);
	if (rc || late) {
		*error = rc ? rc : late;
		if (rc == -EILSEQ || rc == -EBADMSG)
			*bad_chunk = suspect;
	}
	return (int)s->written;
}

int nf_fill_units(struct nf_fillers *f, uint32_t id, const struct rafs_blob *blob, uint32_t unit,
		  uint32_t n, const uint8_t *stored, uint64_t stored_off, uint64_t stored_len,
		  int *error, uint32_t *bad_chunk)
{
	struct nf_object *o = nf_object_by_id(&f->core->table, id);
	struct stage s = { .rs = f->core, .o = o };
	int done = 0;

	*error = 0;
	*bad_chunk = UINT32_MAX;
	if (!o) {
		*error = -ENOENT;
		return 0;
	}
	s.f = take_filler(f);
	if (s.f && !s.f->decoder)
		s.f->decoder = rafs_decoder_new();
	if (!s.f || !s.f->decoder)
		*error = -ENOMEM;
	else if (unit > blob->nunits || n > blob->nunits - unit)
		*error = -EINVAL;
	else
		done = fill_all(&s, blob, unit, n, stored, stored_off, stored_len, error, bad_chunk);
	if (s.f)
		give_back(f, s.f);
	nf_object_put(o);
	return done;
}

int nf_fill_bytes(struct nf_fillers *f, uint32_t id, uint64_t off, const uint8_t *data,
		  uint64_t len)
{
	struct nf_object *o = nf_object_by_id(&f->core->table, id);
	struct stage s = { .rs = f->core, .o = o };
	uint8_t *where;
	int rc = 0;

	if (!o)
		return -ENOENT;
	s.f = take_filler(f);
	if (!s.f)
		rc = -ENOMEM;
	while (len && !rc) {
		uint32_t step = len < STAGE ? (uint32_t)len : STAGE;

		rc = place(&s, off, step, &where);
		if (rc)
			break;
		memcpy(where, data, step);
		placed(&s, step);
		rc = flush(&s);
		off += step;
		data += step;
		len -= step;
	}
	if (s.f)
		give_back(f, s.f);
	nf_object_put(o);
	return rc;
}

void nf_read_heads(int fd, const uint64_t *offs, uint32_t n, uint64_t *heads)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		if (pread(fd, &heads[i], sizeof(heads[i]), (off_t)offs[i]) != sizeof(heads[i]))
			heads[i] = 0;
}
