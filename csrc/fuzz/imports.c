/* Any file, taken for a module of compiled Python or for text. */
#include "base.h"
#include "rafs.h"
#include "core.h"
#include "fuzz.h"

#define ROOM 2048u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *file = malloc(size ? size : 1), out[ROOM];
	size_t used;

	MUST(file);
	if (size)
		memcpy(file, data, size);
	used = nf_imports(file, size, out, sizeof(out));
	MUST(used <= sizeof(out));
	MUST(!used || !out[used - 1]);
	free(file);
	return 0;
}
