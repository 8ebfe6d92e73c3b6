/* The fuse dialect, for the core alone. */
#ifndef NF_FUSE_H
#define NF_FUSE_H

#include "transport.h"

/* A record: the beginning of a message as the kernel sent it, and which connection sent it.
 * There is room for the longest name of a LOOKUP or a GETXATTR. */
#define NF_FUSE_HEAD 312u

struct nf_fuse_record {
	uint8_t head[NF_FUSE_HEAD];	/* struct fuse_in_header and what follows; its len is 0: free */
	uint32_t connection;
	uint32_t reserved;
};

extern const struct nf_transport_ops nf_fuse;

/* See core.h. */
int nf_fuse_attach_files(struct nf_transport *t, uint32_t connection, int fd);
int nf_fuse_attach_flat(struct nf_transport *t, uint32_t connection, int fd, const uint32_t *objects,
			const uint64_t *starts, uint32_t n);
int nf_fuse_attach_tree(struct nf_transport *t, uint32_t connection, int fd, const uint8_t *image,
			size_t len, const uint32_t *objects, uint32_t nobjects);
int nf_fuse_disconnect(struct nf_transport *t, uint32_t connection);
void nf_fuse_wait_for_objects(struct nf_transport *t, bool wait);
void nf_fuse_objects_came(struct nf_transport *t);

#endif
