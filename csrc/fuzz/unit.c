/* Plain, batch and encrypted units of every compressor, and the digest check behind them. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	const uint32_t flags = RAFS_UNIT_COMPRESSED | RAFS_UNIT_ENCRYPTED | RAFS_UNIT_BATCH;
	struct rafs_blob blob = {
		.compressor = (uint32_t)take(&in, 1) % 5,
		.digester = RAFS_DIGEST_BLAKE3,
		.encrypted = 1,
	};
	struct rafs_unit unit = {
		.flags = (uint32_t)take(&in, 1) & flags,
		.ulen = (uint32_t)take(&in, 2) + 1,
		.count = 1,
	};
	struct rafs_chunk chunk = { .flags = RAFS_CHUNK_HAS_DIGEST, .usize = unit.ulen };
	uint8_t *stored, *out;
	size_t stored_len;
	int ret;

	blob.units = &unit;
	blob.chunks = &chunk;
	blob.nunits = blob.nchunks = 1;
	blob.key[0] = 1;
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
