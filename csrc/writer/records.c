/* The records of new chunks, in a bootstrap's chunk table and in a blob's chunk map: see writer.h. */

#include <string.h>

#include "base.h"
#include "rafs.h"
#include "writer.h"

#define BLOCK 4096u
#define V2_MAX ((1u << 24) - 1)

/* Chunk flags of the table (format.md 1.17), and of records of version 2 (2.5). */
enum { COMPRESSED = 1, ENCRYPTED = 4, HAS_CRC32C = 16 };
enum { V2_COMPRESSED = 1, V2_ZRAN = 2, V2_BATCH = 4, V2_ENCRYPTED = 8, V2_CRC = 16 };

static uint8_t *le(uint8_t *to, uint64_t value, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> 8 * i);
	return to + bytes;
}

static uint64_t v1_size(uint32_t size, uint32_t high_at)
{
	size--;
	return (uint64_t)(size & 0xFFFFF) << 44 | (uint64_t)(size >> 20) << high_at;
}

/* What the records of one chunk say. */
struct place {
	const struct rafs_read_chunk *chunk;
	const struct rafs_write_unit *unit;
	uint32_t inside;	/* of a batch: bytes before it */
};

static void put_table(uint8_t *to, const struct place *p, const struct rafs_blob_end *blob)
{
	const int batched = p->unit->batched;
	uint32_t flags = HAS_CRC32C | (blob->encrypted ? ENCRYPTED : 0);

	if (p->unit->compressed && !batched)
		flags |= COMPRESSED;
	memcpy(to, p->chunk->digest, 32);
	to = le(to + 32, 0, 4);
	to = le(to, flags, 4);
	to = le(to, batched ? 0 : p->unit->clen, 4);
	to = le(to, p->chunk->len, 4);
	/* The chunk table does not say where a batch lies. */
	to = le(to, batched ? 0 : blob->compressed_size, 8);
	to = le(to, blob->flat_size, 8);
	to = le(to, p->chunk->file_off, 8);
	to = le(to, blob->index, 4);
	le(to, p->chunk->crc32c, 4);
}

static uint8_t *put_v1(uint8_t *to, const struct place *p, const struct rafs_blob_end *blob)
{
	to = le(to, blob->flat_size | v1_size(p->chunk->len, 8), 8);
	return le(to, blob->compressed_size | v1_size(p->unit->clen, 40), 8);
}

static uint8_t *put_v2(uint8_t *to, const struct place *p, const struct rafs_blob_end *blob)
{
	const int batched = p->unit->batched;
	uint64_t flags = blob->encrypted ? V2_ENCRYPTED : 0, data = p->chunk->crc32c;

	if (batched) {
		flags |= V2_BATCH | V2_COMPRESSED;
		data = (uint64_t)blob->contexts << 32 | p->inside;
	} else {
		if (p->unit->compressed)
			flags |= V2_COMPRESSED;
		/* Upstream's reader takes a crc of 0 for damage. */
		if (data)
			flags |= V2_CRC;
	}
	to = le(to, blob->flat_size >> 12 | (uint64_t)(p->chunk->len - 1) << 32 | flags << 56, 8);
	to = le(to, blob->compressed_size | (uint64_t)(batched ? 0 : p->unit->clen) << 40, 8);
	return le(to, data, 8);
}

int rafs_build_records(const struct rafs_read_chunk *chunks, const uint32_t *which,
		       const uint32_t *unit_of, uint32_t n, const struct rafs_write_unit *units,
		       struct rafs_blob_end *blob, uint8_t *table, uint8_t *cct)
{
	uint32_t inside = 0;

	for (uint32_t k = 0; k < n; k++) {
		const struct place p = { &chunks[which[k]], &units[unit_of[k]], inside };
		const int last = k + 1 == n || unit_of[k + 1] != unit_of[k];

		if (blob->v2 && !p.unit->batched && p.unit->clen > V2_MAX)
			return -EFBIG;
		put_table(table + (size_t)k * 80, &p, blob);
		cct = blob->v2 ? put_v2(cct, &p, blob) : put_v1(cct, &p, blob);
		blob->index++;
		blob->flat_size += (p.chunk->len + BLOCK - 1) / BLOCK * BLOCK;
		inside += p.chunk->len;
		if (last) {
			inside = 0;
			blob->compressed_size += p.unit->clen;
			blob->contexts += p.unit->batched;
		}
	}
	return 0;
}
