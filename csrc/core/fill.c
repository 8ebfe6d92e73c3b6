/*
 * Filling: decode, verify, write, mark present, answer; without the GIL, from
 * any number of threads.
 *
 * Chunks that lie next to each other in the flat file are gathered and written
 * by one call; a gathered piece is at most STAGE bytes (or one chunk), so that
 * the reader of the first is not kept waiting for the last.
 *
 * What is long is done in parts by as many threads as there are idle processors (crew.h).
 */
#include "fill.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STAGE (256u * 1024u)
#define SHARED_LEAST (4 * STAGE)	/* flat bytes that are worth to wake others for */
#define BACKING_PAUSE_US 20000
#define BACKING_PAUSES 250u	/* 5 s */

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

/* What nf_fill was asked for. */
struct job {
	struct nf_requests *rs;
	struct nf_fillers *all;
	struct nf_object *o;
	const struct rafs_blob *blob;
	uint32_t unit;
	const uint8_t *stored;
	uint64_t stored_off;
	uint64_t stored_len;
};

/* What became of units [first, ...): `done` of them are there, and the next was `bad` (or not). */
struct result {
	uint32_t done;
	int error;
	uint32_t bad;
};

/* Units [first, end) of the job. */
static struct result run(const struct job *job, struct nf_filler *f, uint32_t first, uint32_t end)
{
	struct stage s = { .rs = job->rs, .o = job->o, .f = f };
	struct result r = { .bad = UINT32_MAX };
	uint32_t i, suspect = UINT32_MAX;
	int rc = 0, late;

	for (i = first; i < end && !rc; i++) {
		const struct rafs_unit *u = &job->blob->units[job->unit + i];
		uint64_t at = u->coff - job->stored_off;

		if (u->coff < job->stored_off || at > job->stored_len ||
		    u->clen > job->stored_len - at) {
			rc = -EINVAL;
			break;
		}
		rc = fill_unit(&s, job->blob, job->unit + i, job->stored + at, &suspect);
		if (!rc)
			s.done = i - first + 1;
	}
	late = flush(&s);
	if (rc || late) {
		r.error = rc ? rc : late;
		if (rc == -EILSEQ || rc == -EBADMSG)
			r.bad = suspect;
	}
	r.done = s.written;
	return r;
}

/* -- shared ------------------------------------------------------------------------------------ */

/* A job whose parts are taken in their order by any number of threads, until one has an error. */
struct shared {
	struct nf_work work;
	const struct job *job;
	struct nf_filler *f;	/* of whoever shares it */
	uint32_t end;
	pthread_mutex_t lock;	/* what follows */
	uint32_t next;
	struct result first_error;
	bool failed;
};

/* The next part, of about STAGE bytes.  False: there is none. */
static bool next_part(struct shared *s, uint32_t *first, uint32_t *end)
{
	size_t len = 0;

	pthread_mutex_lock(&s->lock);
	*first = s->next;
	if (!s->failed)
		while (s->next < s->end && len < STAGE)
			len += s->job->blob->units[s->job->unit + s->next++].ulen;
	*end = s->next;
	pthread_mutex_unlock(&s->lock);
	return *first < *end;
}

static void take_parts(struct shared *s, struct nf_filler *f)
{
	uint32_t first, end;
	struct result r;

	while (next_part(s, &first, &end)) {
		r = run(s->job, f, first, end);
		if (!r.error)
			continue;
		r.done += first;
		pthread_mutex_lock(&s->lock);
		if (!s->failed || r.done < s->first_error.done)
			s->first_error = r;
		s->failed = true;
		pthread_mutex_unlock(&s->lock);
	}
}

static void help(struct nf_work *w)
{
	struct shared *s = (struct shared *)w;
	struct nf_filler *f = nf_filler_take_idle(s->job->all);

	if (!f)
		return;
	take_parts(s, f);
	nf_filler_give_back(s->job->all, f);
}

static void take_mine(struct nf_work *w)
{
	struct shared *s = (struct shared *)w;

	take_parts(s, s->f);
}

static bool worth_sharing(const struct job *job, uint32_t first, uint32_t end)
{
	size_t len = 0;

	if (!nf_fillers_idle(job->all))
		return false;
	while (first < end && len < SHARED_LEAST)
		len += job->blob->units[job->unit + first++].ulen;
	return first < end && len >= SHARED_LEAST;
}

static struct result run_rest(const struct job *job, struct nf_filler *f, uint32_t n)
{
	struct shared s = { .work.help = help, .job = job, .f = f, .next = 1, .end = n };
	struct result r;

	if (!worth_sharing(job, 1, n)) {
		r = run(job, f, 1, n);
		r.done++;
		return r;
	}
	pthread_mutex_init(&s.lock, NULL);
	nf_crew_share(&job->all->crew, &s.work, take_mine);
	pthread_mutex_destroy(&s.lock);
	r = (struct result){ .done = n, .bad = UINT32_MAX };
	return s.failed ? s.first_error : r;
}

int nf_fill_units(struct nf_requests *rs, struct nf_fillers *all, uint32_t id,
		  const struct rafs_blob *blob, uint32_t unit, uint32_t n, const uint8_t *stored,
		  uint64_t stored_off, uint64_t stored_len, int *error, uint32_t *bad_chunk)
{
	struct nf_object *o = nf_object_by_id(&rs->table, id);
	struct job job = { rs, all, o, blob, unit, stored, stored_off, stored_len };
	struct result r = { .bad = UINT32_MAX };
	struct nf_filler *f = NULL;

	if (!o) {
		r.error = -ENOENT;
	} else if (unit > blob->nunits || n > blob->nunits - unit) {
		r.error = -EINVAL;
	} else if (n) {
		f = nf_filler_with_decoder(all, nf_filler_take(all));
		if (f)	/* the first was asked for: its reader does not wait for the others */
			r = run(&job, f, 0, 1);
		else
			r.error = -ENOMEM;
		if (f && !r.error && n > 1)
			r = run_rest(&job, f, n);
	}
	if (f)
		nf_filler_give_back(all, f);
	if (o)
		nf_object_put(o);
	*error = r.error;
	*bad_chunk = r.bad;
	return (int)r.done;
}

int nf_fill_bytes(struct nf_requests *rs, struct nf_fillers *all, uint32_t id, uint64_t off,
		  const uint8_t *data, uint64_t len)
{
	struct nf_object *o = nf_object_by_id(&rs->table, id);
	struct stage s = { .rs = rs, .o = o };
	uint8_t *where;
	int rc = 0;

	if (!o)
		return -ENOENT;
	s.f = nf_filler_take(all);
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
		nf_filler_give_back(all, s.f);
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
