/*
 * Digests of chunks from where they are kept apart from the chunk map: the
 * bootstrap's chunk table or a blob.digest array.  A record that does not fit
 * its chunk is passed over: that chunk then has no digest, never a wrong one.
 */
#include <string.h>

#include "codec_internal.h"

#define TABLE_RECORD 80
#define TABLE_HAS_CRC 0x10u

static int is_zero(const uint8_t *p, size_t len)
{
	return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static int64_t count_digests(const struct rafs_blob *blob)
{
	int64_t n = 0;

	for (uint32_t i = 0; i < blob->nchunks; i++)
		n += blob->chunks[i].flags & RAFS_CHUNK_HAS_DIGEST ? 1 : 0;
	return n;
}

/* No data hash to zeros: that is how "no digest" is written. */
static void set_digest(struct rafs_chunk *c, const uint8_t *digest)
{
	if (is_zero(digest, sizeof(c->digest)))
		return;
	memcpy(c->digest, digest, sizeof(c->digest));
	c->flags |= RAFS_CHUNK_HAS_DIGEST;
}

int64_t rafs_chunk_table_apply(const uint8_t *table, size_t len, uint32_t blob_index,
			       struct rafs_blob *blob)
{
	if (len % TABLE_RECORD)
		return -EINVAL;
	for (const uint8_t *p = table; p != table + len; p += TABLE_RECORD) {
		const uint32_t index = le32(p + 72);
		struct rafs_chunk *c;

		if (le32(p + 32) != blob_index || index >= blob->nchunks)
			continue;
		c = &blob->chunks[index];
		if (le64(p + 56) != c->uoff || le32(p + 44) != c->usize)
			continue;
		set_digest(c, p);
		if (le32(p + 36) & TABLE_HAS_CRC && !(c->flags & RAFS_CHUNK_HAS_CRC)) {
			c->crc32c = le32(p + 76);
			c->flags |= RAFS_CHUNK_HAS_CRC;
		}
	}
	return count_digests(blob);
}

int64_t rafs_digest_array_apply(const uint8_t *array, size_t len, struct rafs_blob *blob)
{
	if (len != (uint64_t)blob->nchunks * 32)
		return -EINVAL;
	for (uint32_t i = 0; i < blob->nchunks; i++)
		set_digest(&blob->chunks[i], array + (size_t)i * 32);
	return count_digests(blob);
}
