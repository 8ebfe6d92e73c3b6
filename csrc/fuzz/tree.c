/* The tree of a bootstrap: no step outside of it, and an end, whatever it says. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct rafs_bootstrap_blob blobs[2];
	struct rafs_bootstrap tree = { .blobs = blobs };
	uint8_t *bootstrap;
	size_t lead;	/* zeros in front, where superblocks and tables are */
	int ret;

	tree.block_size = take(&in, 1) & 1 ? 4096 : 512;
	tree.chunk_size = 4096u << (take(&in, 1) & 15);
	tree.meta = take(&in, 2) * tree.block_size;
	tree.root_nid = take(&in, 2);
	tree.chunk_table = take(&in, 2);
	tree.chunk_table_len = take(&in, 2);
	tree.nblobs = take(&in, 1) % 3;
	for (uint32_t i = 0; i < tree.nblobs; i++) {
		blobs[i].flat_size = take(&in, 6);
		blobs[i].chunk_count = (uint32_t)take(&in, 4);
		blobs[i].is_tarfs = (uint32_t)take(&in, 1) & 1;
	}
	lead = take(&in, 2);
	tree.len = lead + in.len;
	bootstrap = calloc(1, tree.len);
	MUST(bootstrap || !tree.len);
	if (in.len)
		memcpy(bootstrap + lead, in.p, in.len);
	tree.data = bootstrap;
	ret = rafs_bootstrap_is_sound(&tree);
	MUST(ret == 1 || ret == 0 || ret == -EINVAL);
	free(bootstrap);
	return 0;
}
