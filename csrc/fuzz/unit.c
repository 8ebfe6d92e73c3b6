/* Plain, batch and encrypted units of every compressor, and the digest check behind them. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	const uint32_t flags = RAFS_UNIT_COMPRESSED | RAFS_UNIT_ENCRYPTED | RAFS_UNIT_BATCH;
	struct rafs_blob blob = { .digester = RAFS_DIGEST_BLAKE3, .encrypted = 1 };
	struct rafs_unit unit = { .count = 1 };
	struct rafs_chunk chunk = { .flags = RAFS_CHUNK_HAS_DIGEST };
	uint8_t *stored, *out;
	size_t stored_len;
	int ret;

	blob.compressor = (uint32_t)take(&in, 1) % 5;
	blob.key[0] = 1;
	blob.units = &unit;
	blob.chunks = &chunk;
	blob.nunits = blob.nchunks = 1;
	unit.flags = (uint32_t)take(&in, 1) & flags;
	unit.ulen = chunk.usize = (uint32_t)take(&in, 2) + 1;
	stored = take_copy(&in, in.len, &stored_len);
	out = malloc(unit.ulen);
	MUST(out);
	unit.clen = (uint32_t)stored_len;
	ret = rafs_unit_decode(decoder(), &blob, 0, stored, stored_len, out, unit.ulen);
	MUST(ret == 0 || ret == -EBADMSG || ret == -ENOTSUP);
	/* No data hash to zeros. */
	if (ret == 0)
		MUST(rafs_chunk_verify(&blob, 0, out) == -EILSEQ);
	free(stored);
	free(out);
	return 0;
}
