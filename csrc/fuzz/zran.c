/* Inflating from the middle: any bytes, any window, any bits. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct rafs_unit unit = { .flags = RAFS_UNIT_ZRAN | RAFS_UNIT_COMPRESSED };
	struct rafs_blob blob = { .units = &unit, .nunits = 1 };
	uint8_t *dict, *stored, *out;
	size_t dict_len, stored_len;
	int ret;

	unit.prime_byte = (uint8_t)take(&in, 1);
	unit.prime_bits = (uint8_t)take(&in, 1) & 7;
	unit.ulen = (uint32_t)take(&in, 2) + 1;
	dict_len = take(&in, 2) & 0x7fff;
	dict = take_copy(&in, dict_len, &dict_len);
	stored = take_copy(&in, in.len, &stored_len);
	out = malloc(unit.ulen);
	MUST(out);
	unit.dict_len = (uint32_t)dict_len;
	unit.clen = (uint32_t)stored_len;
	blob.dicts = dict;
	blob.dicts_len = dict_len;
	ret = rafs_unit_decode(decoder(), &blob, 0, stored, stored_len, out, unit.ulen);
	MUST(ret == 0 || ret == -EBADMSG);
	free(dict);
	free(stored);
	free(out);
	return 0;
}
