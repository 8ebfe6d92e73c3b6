/* Chunk maps: what rafs_cct_decode lets pass is in bounds, and stays so with any digests. */
#include "fuzz.h"

static void check(const struct rafs_blob *b, const struct rafs_cct_info *info)
{
	uint64_t end = 0;
	uint32_t next = 0;

	MUST(b->nchunks == info->nchunks && b->nunits >= 1 && b->nunits <= b->nchunks);
	for (uint32_t i = 0; i < b->nunits; i++) {
		const struct rafs_unit *u = &b->units[i];

		MUST(u->first == next && u->count >= 1);
		next += u->count;
		MUST(u->ulen >= 1 && u->ulen <= RAFS_MAX_CHUNK_SIZE);
		MUST(u->clen >= 1 && u->clen <= info->data_size &&
		     u->coff <= info->data_size - u->clen);
		MUST(u->dict_len <= 32768 && u->prime_bits < 8);
		MUST(u->dict_len <= b->dicts_len && u->dict_off <= b->dicts_len - u->dict_len);
	}
	MUST(next == b->nchunks);
	for (uint32_t i = 0; i < b->nchunks; i++) {
		const struct rafs_chunk *c = &b->chunks[i];

		MUST(c->unit < b->nunits && i - b->units[c->unit].first < b->units[c->unit].count);
		MUST(c->usize >= 1 && c->usize <= b->units[c->unit].ulen &&
		     c->unit_off <= b->units[c->unit].ulen - c->usize);
		MUST(c->uoff % 4096 == 0 && c->uoff >= end);
		MUST(rafs_chunk_find(b, c->uoff) == i);
		end = c->uoff + c->usize;
	}
	MUST(end <= info->flat_size + 4095);
	MUST(rafs_chunk_find(b, end + 4095) == b->nchunks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct rafs_cct_info info;
	size_t len, table_len;
	uint8_t *table, *cct;
	struct rafs_chunk *chunks;
	struct rafs_unit *units;
	struct rafs_blob blob = { 0 };
	char err[80];
	int ret;

	info.features = (uint32_t)take(&in, 4);
	info.nchunks = (uint32_t)take(&in, 1);
	info.nctx = (uint32_t)take(&in, 1);
	info.ctx_off = take(&in, 8);
	info.ctx_size = take(&in, 8);
	info.data_size = take(&in, 6);
	info.flat_size = take(&in, 6);
	table_len = take(&in, 2);
	table = take_copy(&in, table_len, &table_len);
	cct = take_copy(&in, in.len, &len);
	chunks = calloc(info.nchunks, sizeof(*chunks));
	units = calloc(info.nchunks, sizeof(*units));
	ret = rafs_cct_decode(cct, len, &info, chunks, units, &blob, err, sizeof(err));
	MUST(ret == 0 || ret == -EBADMSG);
	MUST((ret == 0) == (err[0] == 0) && memchr(err, 0, sizeof(err)));
	if (ret == 0) {
		check(&blob, &info);
		rafs_chunk_table_apply(table, table_len, 0, &blob);
		rafs_digest_array_apply(table, table_len, &blob);
		check(&blob, &info);
	}
	free(table);
	free(cct);
	free(chunks);
	free(units);
	return 0;
}
