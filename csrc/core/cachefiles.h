/* The cachefiles on-demand dialect, for the core alone. */
#ifndef NF_CACHEFILES_H
#define NF_CACHEFILES_H

#include "transport.h"

#define NF_MESSAGE_SIZE 1024	/* CACHEFILES_MSG_MAX_SIZE */

/* As the kernel sends it (reference kernel-transports 1.3). */
struct nf_message {
	uint32_t msg_id;
	uint32_t opcode;
	uint32_t len;		/* 0: the record is free */
	uint32_t object_id;
	uint8_t body[NF_MESSAGE_SIZE - 16];
};

extern const struct nf_transport_ops nf_cachefiles;

int nf_cachefiles_attach(struct nf_transport *t, int device);
/* The functions of core.h that are of this dialect. */
int nf_cachefiles_keep_by(struct nf_transport *t, int socket);
int nf_cachefiles_answer_open(struct nf_transport *t, uint32_t msg_id, int64_t size);
void nf_cachefiles_closed(struct nf_transport *t, uint32_t kernel_object);
int nf_cachefiles_next_inherited(struct nf_transport *t, uint32_t what, uint32_t *cursor,
				 struct nf_event *out);
void nf_cachefiles_sent_again(struct nf_transport *t);

#endif
