/* What every C file of ours starts with: the system headers that our own headers need. */
#ifndef NYDUS_BASE_H
#define NYDUS_BASE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#endif
