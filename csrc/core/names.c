/* A list of names in memory of the caller, bounded (names.h). */
#include <stdbool.h>
#include <string.h>

#include "names.h"

void nf_name(struct names *n, uint32_t up, struct word name, struct word last)
{
	uint8_t buf[2 * NAME_MAX_LEN + 32], *to = buf;
	bool slash = true;

	if (name.len > NAME_MAX_LEN || last.len > NAME_MAX_LEN || up > 8)
		return;
	if (up == 1) {
		memcpy(to, "./", 2);
		to += 2;
	}
	for (; up > 1; up--) {
		memcpy(to, "../", 3);
		to += 3;
	}
	for (uint32_t i = 0; i < name.len; i++) {
		const bool dot = name.p[i] == '.' || name.p[i] == ':';

		if (!dot || !slash)
			*to++ = dot ? '/' : name.p[i];
		slash = dot;
	}
	if (last.len) {
		if (name.len && !slash)
			*to++ = '/';
		memcpy(to, last.p, last.len);
		to += last.len;
	}
	*to++ = 0;
	if (n->count == NAMES_MAX || (size_t)(to - buf) > n->room - n->used || to - buf < 2)
		return;
	memcpy(n->out + n->used, buf, (size_t)(to - buf));
	n->used += (size_t)(to - buf);
	n->count++;
}
