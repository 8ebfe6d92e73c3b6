/* The names of other files that a file says it needs: found by imports.c and compiled_python.c. */
#ifndef NF_NAMES_H
#define NF_NAMES_H

#include <stddef.h>
#include <stdint.h>

#define NAMES_MAX 256u
#define NAME_MAX_LEN 128u

/* Each ends with a zero. */
struct names {
	uint8_t *out;
	size_t used, room;
	uint32_t count;
};

struct word {
	const uint8_t *p;
	uint32_t len;
};

/*
 * A path: `up` 0: to be sought, 1: beside the file, 2: beside its directory, ...; then the parts of
 * `name`, by dots, "::" or "/", and `last` behind it.  Left out when there is no room.
 */
void nf_name(struct names *n, uint32_t up, struct word name, struct word last);

/* Those of a module of compiled Python, as its magic says; `len` beyond its header. */
void nf_names_of_python(const uint8_t *data, size_t len, struct names *out);

#define NF_PYTHON_HEADER 16u	/* magic, flags, time or hash, size: PEP 552 */

#endif
