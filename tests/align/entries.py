"""An invented protein in both formats of Swiss-Prot, with what makes real entries hard to read alike."""

SEQUENCE = "MKLLVTAAIGSGHDEWRKNQPYFCMSTEDLKRVAGNIHPLWQEYTSFMCKVDERTAGIL"

FLAT = f"""ID   TEST1_DEMO              Reviewed;          {len(SEQUENCE)} AA.
AC   Q00001; Q00002;
DT   01-JAN-2020, integrated into UniProtKB/Swiss-Prot.
DT   01-JAN-2020, sequence version 1.
DT   01-JAN-2021, entry version 2.
DE   RecName: Full=Example kinase 1 {{ECO:0000303|PubMed:1234567}};
DE            Short=EK-1;
DE            EC=2.7.11.1;
DE   AltName: Full=Protein example;
DE   Contains:
DE     RecName: Full=Example kinase 1 light chain;
DE   Flags: Precursor;
GN   Name=EXK1;
OS   Demonstratio exempli.
OC   Eukaryota.
OX   NCBI_TaxID=9999;
RN   [1]
RP   FUNCTION.
RX   PubMed=1234567;
RA   Author A.B.;
RT   "An example.";
RL   J. Ex. 1:1-2(2020).
CC   -!- FUNCTION: Phosphorylates the alpha- and beta-subunits of a 5-
CC       hydroxytryptamine receptor (PubMed:1234567, PubMed:7654321). Acts in
CC       the MAP kinase pathway (By similarity). {{ECO:0000250,
CC       ECO:0000269|PubMed:1234567}}.
CC   -!- SUBUNIT: Binds nothing. {{ECO:0000305}}.
CC   -!- SUBCELLULAR LOCATION: Cell membrane {{ECO:0000305}}; Lipid-anchor, GPI-
CC       anchor {{ECO:0000305}}. Cytoplasm. Note=Only in examples.
CC   -!- SIMILARITY: Belongs to the protein kinase superfamily. Ser/Thr protein
CC       kinase family. {{ECO:0000255|PROSITE-ProRule:PRU00159}}.
PE   1: Evidence at protein level;
KW   Kinase.
SQ   SEQUENCE   {len(SEQUENCE)} AA;  6000 MW;  0000000000000000 CRC64;
     {SEQUENCE[:10]} {SEQUENCE[10:20]} {SEQUENCE[20:30]} {SEQUENCE[30:40]} {SEQUENCE[40:50]} {SEQUENCE[50:]}
//
"""

XML = f"""<?xml version="1.0" encoding="UTF-8"?>
<uniprot xmlns="http://uniprot.org/uniprot"><entry dataset="Swiss-Prot" created="2020-01-01" modified="2021-01-01"
 version="2">
<accession>Q00001</accession>
<accession>Q00002</accession>
<name>TEST1_DEMO</name>
<protein>
 <recommendedName><fullName evidence="1">Example kinase 1</fullName><shortName>EK-1</shortName>
  <ecNumber>2.7.11.1</ecNumber></recommendedName>
 <alternativeName><fullName>Protein example</fullName></alternativeName>
 <component><recommendedName><fullName>Example kinase 1 light chain</fullName></recommendedName></component>
</protein>
<gene><name type="primary">EXK1</name></gene>
<comment type="function"><text evidence="1 2">Phosphorylates the alpha- and beta-subunits of a 5-hydroxytryptamine
 receptor (PubMed:1234567, PubMed:7654321). Acts in the MAP kinase pathway (By similarity).</text></comment>
<comment type="subunit"><text>Binds nothing.</text></comment>
<comment type="subcellular location">
 <subcellularLocation><location evidence="3">Cell membrane</location><topology evidence="3">Lipid-anchor</topology>
  <topology evidence="3">GPI-anchor</topology></subcellularLocation>
 <subcellularLocation><location>Cytoplasm</location></subcellularLocation>
 <text>Only in examples.</text></comment>
<comment type="similarity"><text evidence="4">Belongs to the protein kinase superfamily. Ser/Thr protein kinase
 family.</text></comment>
<sequence length="{len(SEQUENCE)}" mass="6000" checksum="0000000000000000" modified="2020-01-01" version="1"
>{SEQUENCE}</sequence>
</entry></uniprot>
"""
