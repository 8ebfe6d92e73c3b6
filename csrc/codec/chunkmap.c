/*
 * Chunk maps: from the records of a CCT, which anyone may have written, to
 * arrays that the rest can index without looking again.  What passes here is
 * in bounds: chunks in the flat blob and in their unit, units in the stored
 * blob, windows in the dictionary area.  Linear time, no memory of its own.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "codec_internal.h"

#define FLAT_ALIGN 4096u
#define MAX_CHUNKS (1u << 24)
#define MAX_FLAT (UINT64_C(1) << 44)
#define MAX_STORED (UINT64_C(1) << 40)
/* Deflate hardly grows data: more input than this for one unit is an attack on memory. */
#define MAX_ZRAN_INPUT (2u * RAFS_MAX_CHUNK_SIZE)
#define MAX_WINDOW 32768u

#define V1_RECORD 16
#define V2_RECORD 24
#define CONTEXT_RECORD 40

#define FEATURE_V2 0x4u
#define FEATURE_ZRAN 0x8u
#define FEATURE_BATCH 0x80u
#define FEATURE_ENCRYPTED 0x100u
#define FEATURE_CHUNKDICT 0x200u

#define V2_COMPRESSED 0x1u
#define V2_ZRAN 0x2u
#define V2_BATCH 0x4u
#define V2_ENCRYPTED 0x8u
#define V2_CRC 0x10u

struct map {
	const struct rafs_cct_info *info;
	const uint8_t *contexts;	/* info->nctx records */
	uint64_t dicts_len;
	struct rafs_chunk *chunks;
	struct rafs_unit *units;
	uint32_t nunits;
	uint64_t stored;		/* bytes of units that are one chunk each */
	uint32_t open_ctx;		/* context of the last unit, if that is zran or batch */
	char *err;
	size_t errlen;
};

/* One record, whichever version, before it is believed. */
struct record {
	uint64_t uoff, coff;
	uint32_t usize, csize;
	uint32_t flags;			/* V2_* */
	uint32_t ctx, ctx_off;		/* zran and batch */
	uint32_t crc32c;
};

static uint64_t padded(uint64_t size)
{
	return (size + FLAT_ALIGN - 1) & ~(uint64_t)(FLAT_ALIGN - 1);
}

__attribute__((format(printf, 2, 3)))
static int refuse(const struct map *m, const char *fmt, ...)
{
	va_list ap;

	if (m->errlen) {
		va_start(ap, fmt);
		vsnprintf(m->err, m->errlen, fmt, ap);
		va_end(ap);
	}
	return -EBADMSG;
}

static void read_v1(const uint8_t *p, struct record *r)
{
	uint64_t u = le64(p), c = le64(p + 8);

	memset(r, 0, sizeof(*r));
	r->uoff = u & UINT64_C(0xffffffff000);
	r->usize = (uint32_t)(u >> 44 | (u >> 8 & 0xf) << 20) + 1;
	r->coff = c & UINT64_C(0xffffffffff);
	r->csize = (uint32_t)(c >> 44 | (c >> 40 & 0xf) << 20) + 1;
	if (r->csize != r->usize)
		r->flags = V2_COMPRESSED;
}

static void read_v2(const uint8_t *p, struct record *r)
{
	uint64_t u = le64(p), c = le64(p + 8);

	r->uoff = (u & 0xffffffff) << 12;
	r->usize = (uint32_t)(u >> 32 & 0xffffff) + 1;
	r->flags = (uint32_t)(u >> 56);
	r->coff = c & UINT64_C(0xffffffffff);
	r->csize = (uint32_t)(c >> 40);
	r->crc32c = r->ctx_off = le32(p + 16);
	r->ctx = le32(p + 20);
}

static int check_header(const struct map *m, uint64_t len)
{
	const struct rafs_cct_info *info = m->info;
	uint64_t records = (uint64_t)info->nchunks *
			   (info->features & FEATURE_V2 ? V2_RECORD : V1_RECORD);

	if (!info->nchunks || info->nchunks > MAX_CHUNKS)
		return refuse(m, "%u chunks, not 1 to %u", info->nchunks, MAX_CHUNKS);
	if (info->flat_size > MAX_FLAT || info->data_size > MAX_STORED)
		return refuse(m, "blob too large for the format");
	if (records > len)
		return refuse(m, "%u chunk records do not fit in %llu bytes", info->nchunks,
			      (unsigned long long)len);
	if (!(info->features & (FEATURE_ZRAN | FEATURE_BATCH))) {
		if (info->nctx)
			return refuse(m, "contexts in a blob without zran and batch");
		if (records != len && !(info->features & (FEATURE_ENCRYPTED | FEATURE_CHUNKDICT)))
			return refuse(m, "%llu bytes after the last chunk record",
				      (unsigned long long)(len - records));
		return 0;
	}
	if (!(info->features & FEATURE_V2) ||
	    (info->features & FEATURE_ZRAN && info->features & FEATURE_BATCH))
		return refuse(m, "features 0x%x contradict each other", info->features);
	if (info->nctx > info->nchunks ||
	    (uint64_t)info->nctx * CONTEXT_RECORD > info->ctx_size || info->ctx_size > len ||
	    info->ctx_off > len - info->ctx_size || info->ctx_off < records)
		return refuse(m, "%u contexts at %llu+%llu do not fit", info->nctx,
			      (unsigned long long)info->ctx_off,
			      (unsigned long long)info->ctx_size);
	return 0;
}

static int check_record(const struct map *m, uint32_t i, const struct record *r)
{
	const struct rafs_cct_info *info = m->info;
	const uint32_t kinds = (r->flags & V2_ZRAN ? FEATURE_ZRAN : 0) |
			       (r->flags & V2_BATCH ? FEATURE_BATCH : 0) |
			       (r->flags & V2_ENCRYPTED ? FEATURE_ENCRYPTED : 0);

	if (kinds & ~info->features ||
	    (r->flags & V2_ZRAN && r->flags & (V2_BATCH | V2_ENCRYPTED)) ||
	    (r->flags & V2_CRC && r->flags & (V2_ZRAN | V2_BATCH)))
		return refuse(m, "chunk %u: flags 0x%x contradict the blob or each other", i,
			      r->flags);
	if (r->flags & V2_CRC && !r->crc32c)
		return refuse(m, "chunk %u: crc32c flagged but zero", i);
	if (r->uoff + r->usize > padded(info->flat_size))
		return refuse(m, "chunk %u: flat bytes %llu+%u beyond %llu", i,
			      (unsigned long long)r->uoff, r->usize,
			      (unsigned long long)info->flat_size);
	if (i && r->uoff < padded(m->chunks[i - 1].uoff + m->chunks[i - 1].usize))
		return refuse(m, "chunk %u: flat offset %llu overlaps chunk %u", i,
			      (unsigned long long)r->uoff, i - 1);
	return 0;
}

static int check_unit(const struct map *m, uint32_t i, const struct rafs_unit *u)
{
	if (!u->ulen || u->ulen > RAFS_MAX_CHUNK_SIZE)
		return refuse(m, "chunk %u: unit of %u plain bytes", i, u->ulen);
	if (!u->clen || u->clen > MAX_ZRAN_INPUT || u->clen > m->info->data_size ||
	    u->coff > m->info->data_size - u->clen)
		return refuse(m, "chunk %u: stored bytes %llu+%u beyond %llu", i,
			      (unsigned long long)u->coff, u->clen,
			      (unsigned long long)m->info->data_size);
	return 0;
}

/* Raw units are as long as their data; encryption makes those below 16 bytes 18. */
static int raw_size_fits(const struct rafs_unit *u)
{
	return u->clen == u->ulen ||
	       (u->flags & RAFS_UNIT_ENCRYPTED && u->ulen < 16 && u->clen == XTS_PADDED_LEN);
}

static int open_plain(struct map *m, uint32_t i, const struct record *r,
		      struct rafs_unit *u)
{
	u->coff = r->coff;
	u->clen = r->csize;
	u->ulen = r->usize;
	if (r->flags & V2_COMPRESSED)
		u->flags |= RAFS_UNIT_COMPRESSED;
	else if (!raw_size_fits(u))
		return refuse(m, "chunk %u: raw, but %u bytes stored for %u", i, u->clen, u->ulen);
	if (u->flags & RAFS_UNIT_ENCRYPTED && (u->clen < 16 || u->clen > XTS_MAX_LEN))
		return refuse(m, "chunk %u: %u encrypted bytes", i, u->clen);
	/* each has bytes of its own: a million of them in one byte would be memory for nothing */
	m->stored += u->clen;
	if (m->stored > m->info->data_size)
		return refuse(m, "chunk %u: the chunks up to here have %llu stored bytes, of %llu", i,
			      (unsigned long long)m->stored,
			      (unsigned long long)m->info->data_size);
	return check_unit(m, i, u);
}

static int open_batch(const struct map *m, uint32_t i, const struct record *r,
		      struct rafs_unit *u)
{
	const uint8_t *ctx = m->contexts + (uint64_t)r->ctx * CONTEXT_RECORD;

	u->coff = r->coff;
	u->clen = le32(ctx);
	u->ulen = le32(ctx + 4);
	u->flags |= RAFS_UNIT_BATCH;
	if (u->clen != u->ulen)
		u->flags |= RAFS_UNIT_COMPRESSED;
	if (u->clen > u->ulen && !raw_size_fits(u))
		return refuse(m, "chunk %u: batch %u grew from %u to %u bytes", i, r->ctx, u->ulen,
			      u->clen);
	return check_unit(m, i, u);
}

static int open_zran(const struct map *m, uint32_t i, const struct record *r,
		     struct rafs_unit *u)
{
	const uint8_t *ctx = m->contexts + (uint64_t)r->ctx * CONTEXT_RECORD;

	u->coff = le64(ctx);
	u->dict_off = le64(ctx + 16);
	u->clen = le32(ctx + 24);
	u->ulen = le32(ctx + 28);
	u->dict_len = le32(ctx + 32);
	u->prime_byte = ctx[36];
	u->prime_bits = ctx[37];
	u->flags |= RAFS_UNIT_ZRAN | RAFS_UNIT_COMPRESSED;
	if (u->prime_bits > 7 || u->dict_len > MAX_WINDOW || u->dict_len > m->dicts_len ||
	    u->dict_off > m->dicts_len - u->dict_len)
		return refuse(m, "chunk %u: zran context %u has an impossible window", i, r->ctx);
	return check_unit(m, i, u);
}

/* Whether record r is one more chunk of the unit that was opened last. */
static int continues(const struct map *m, const struct record *r, uint32_t kind)
{
	return m->nunits && kind && r->ctx == m->open_ctx &&
	       m->units[m->nunits - 1].flags & kind;
}

static int place(struct map *m, uint32_t i, const struct record *r)
{
	const uint32_t kind = r->flags & V2_ZRAN ? RAFS_UNIT_ZRAN :
			      r->flags & V2_BATCH ? RAFS_UNIT_BATCH : 0;
	struct rafs_unit *u;
	int err;

	if (continues(m, r, kind)) {
		u = &m->units[m->nunits - 1];
		if (kind == RAFS_UNIT_BATCH &&
		    (u->coff != r->coff ||
		     !(u->flags & RAFS_UNIT_ENCRYPTED) != !(r->flags & V2_ENCRYPTED)))
			return refuse(m, "chunk %u: at odds with its batch %u", i, r->ctx);
	} else {
		u = &m->units[m->nunits];
		memset(u, 0, sizeof(*u));
		u->first = i;
		if (r->flags & V2_ENCRYPTED)
			u->flags = RAFS_UNIT_ENCRYPTED;
		if (kind && r->ctx >= m->info->nctx)
			return refuse(m, "chunk %u: context %u of %u", i, r->ctx, m->info->nctx);
		if (kind == RAFS_UNIT_ZRAN)
			err = open_zran(m, i, r, u);
		else if (kind == RAFS_UNIT_BATCH)
			err = open_batch(m, i, r, u);
		else
			err = open_plain(m, i, r, u);
		if (err)
			return err;
		m->open_ctx = r->ctx;
		m->nunits++;
	}
	u->count++;
	if (kind && (r->usize > u->ulen || r->ctx_off > u->ulen - r->usize))
		return refuse(m, "chunk %u: bytes %u+%u of a unit of %u", i, r->ctx_off, r->usize,
			      u->ulen);
	m->chunks[i] = (struct rafs_chunk){
		.uoff = r->uoff,
		.usize = r->usize,
		.unit = m->nunits - 1,
		.unit_off = kind ? r->ctx_off : 0,
		.flags = r->flags & V2_CRC ? RAFS_CHUNK_HAS_CRC : 0,
		.crc32c = r->flags & V2_CRC ? r->crc32c : 0,
	};
	return 0;
}

int rafs_cct_decode(const uint8_t *cct, size_t len, const struct rafs_cct_info *info,
		    struct rafs_chunk *chunks, struct rafs_unit *units,
		    struct rafs_blob *out, char *err, size_t errlen)
{
	struct map m = {
		.info = info,
		.chunks = chunks,
		.units = units,
		.err = err,
		.errlen = errlen,
	};
	uint64_t dicts_off = 0;
	int ret;

	if (errlen)
		err[0] = 0;
	ret = check_header(&m, len);
	if (ret)
		return ret;
	if (info->nctx) {
		m.contexts = cct + info->ctx_off;
		if (info->features & FEATURE_ZRAN) {
			dicts_off = info->ctx_off + (uint64_t)info->nctx * CONTEXT_RECORD;
			m.dicts_len = info->ctx_off + info->ctx_size - dicts_off;
		}
	}
	for (uint32_t i = 0; i < info->nchunks; i++) {
		struct record r;

		if (info->features & FEATURE_V2)
			read_v2(cct + (uint64_t)i * V2_RECORD, &r);
		else
			read_v1(cct + (uint64_t)i * V1_RECORD, &r);
		ret = check_record(&m, i, &r);
		if (!ret)
			ret = place(&m, i, &r);
		if (ret)
			return ret;
	}
	out->chunks = chunks;
	out->units = units;
	out->nchunks = info->nchunks;
	out->nunits = m.nunits;
	out->dicts = m.dicts_len ? cct + dicts_off : NULL;
	out->dicts_len = m.dicts_len;
	return 0;
}

int rafs_identity_map(uint64_t size, uint32_t window, struct rafs_chunk *chunks,
		      struct rafs_unit *units, struct rafs_blob *out)
{
	uint64_t n;

	if (!size || size > MAX_FLAT || !window || window > RAFS_MAX_CHUNK_SIZE ||
	    window % FLAT_ALIGN)
		return -EINVAL;
	n = (size + window - 1) / window;
	if (n > UINT32_MAX)
		return -EINVAL;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t off = i * window;
		uint32_t bytes = size - off < window ? (uint32_t)(size - off) : window;

		chunks[i] = (struct rafs_chunk){
			.uoff = off, .usize = bytes, .unit = (uint32_t)i,
		};
		units[i] = (struct rafs_unit){
			.coff = off, .clen = bytes, .ulen = bytes, .first = (uint32_t)i, .count = 1,
		};
	}
	out->chunks = chunks;
	out->units = units;
	out->nchunks = out->nunits = (uint32_t)n;
	out->dicts = NULL;
	out->dicts_len = 0;
	return 0;
}

uint32_t rafs_chunk_find(const struct rafs_blob *blob, uint64_t off)
{
	uint32_t lo = 0, hi = blob->nchunks;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		const struct rafs_chunk *c = &blob->chunks[mid];

		if (padded(c->uoff + c->usize) > off)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static int all_set(const uint8_t *bits, uint64_t first, uint64_t end)
{
	for (; first < end && first % 8; first++)
		if (!(bits[first / 8] & 1u << first % 8))
			return 0;
	for (; end - first >= 8; first += 8)
		if (bits[first / 8] != 0xff)
			return 0;
	for (; first < end; first++)
		if (!(bits[first / 8] & 1u << first % 8))
			return 0;
	return 1;
}

uint32_t rafs_units_present(const struct rafs_blob *blob, uint64_t flat_size,
			    const uint8_t *pages, uint8_t *present)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < blob->nunits; i++) {
		const struct rafs_unit *u = &blob->units[i];
		const struct rafs_chunk *last = &blob->chunks[u->first + u->count - 1];
		uint64_t end = padded(last->uoff + last->usize);

		if (end > flat_size)
			end = flat_size;
		present[i] = (uint8_t)all_set(pages, blob->chunks[u->first].uoff / FLAT_ALIGN,
					      padded(end) / FLAT_ALIGN);
		n += present[i];
	}
	return n;
}
