// A SCP that shares no code with the node: keeps the instances it is given, takes reports, says when it listens.
'use strict';
const { Dataset, Server, Scp, constants, log, responses } = require(process.argv[2]);
log.setLevel('silent');
const { PresentationContextResult, TransferSyntax } = constants;
const items = new Map();

class Worklist extends Scp {
  associationRequested(association) {
    for (const { id } of association.getPresentationContexts()) {
      association.getPresentationContext(id).setResult(PresentationContextResult.Accept, TransferSyntax.ImplicitVRLittleEndian);
    }
    this.sendAssociationAccept();
  }

  associationReleaseRequested() {
    this.sendAssociationReleaseResponse();
  }

  nCreateRequest(request, callback) {
    const uid = request.getAffectedSopInstanceUid();
    const response = responses.NCreateResponse.fromRequest(request);
    response.setStatus(items.has(uid) ? 0x0111 : 0x0000);
    if (!items.has(uid)) items.set(uid, request.getDataset().getElements());
    callback(response);
  }

  nSetRequest(request, callback) {
    const uid = request.getRequestedSopInstanceUid();
    const response = responses.NSetResponse.fromRequest(request);
    response.setStatus(items.has(uid) ? 0x0000 : 0xc307);
    if (items.has(uid)) Object.assign(items.get(uid), request.getDataset().getElements());
    callback(response);
  }

  nEventReportRequest(request, callback) {
    const { TransactionUID, ReferencedSOPSequence } = request.getDataset().getElements();
    const response = responses.NEventReportResponse.fromRequest(request);
    response.setStatus(TransactionUID && ReferencedSOPSequence ? 0x0000 : 0x0115);
    callback(response);
  }

  nGetRequest(request, callback) {
    const uid = request.getRequestedSopInstanceUid();
    const response = responses.NGetResponse.fromRequest(request);
    response.setStatus(items.has(uid) ? 0x0000 : 0xc307);
    if (items.has(uid)) {
      const { ProcedureStepState, ScheduledProcedureStepPriority, ProcedureStepLabel } = items.get(uid);
      const chosen = { ProcedureStepState, ScheduledProcedureStepPriority, ProcedureStepLabel };
      response.setDataset(new Dataset(chosen, TransferSyntax.ImplicitVRLittleEndian));
    }
    callback(response);
  }
}

const server = new Server(Worklist);
server.on('networkError', (error) => process.stderr.write(`${error}\n`));
server.listen(Number(process.argv[3]));
process.stdout.write('listening\n');
